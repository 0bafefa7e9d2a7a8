"""Files beside masks that say which structure each value or colour is: of CVAT, VOC, nnU-Net, Roboflow and CamVid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.table import plain, read_table
from lungseg_ray.corpus.layouts.tree import Entry, FileTree
from lungseg_ray.corpus.structures import words_of
from lungseg_ray.errors import UserError
from lungseg_ray.text import counted, shown

TABLES_OF_VALUES = ("_classes.csv", "class_dict.csv")
"""Names of tables of values, which are of Roboflow, and of colours, which are of CamVid and sets made like it."""
_LABELMAP, _DATASET = "labelmap.txt", "dataset.json"
_DEEPEST = 2
_MOST_BYTES = 1 << 24
# "lung:250,50,83::" of CVAT: name, colour, parts, actions.
_LINE = re.compile(r"(?P<name>[^:#][^:]*):(?P<red>\d{1,3}),(?P<green>\d{1,3}),(?P<blue>\d{1,3}):[^:]*:[^:]*")


def find_value_names(tree: FileTree, settings: CorpusSettings) -> tuple[dict[str, str], list[str]]:
    """Finds the names of the values or colours of masks.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus. Where `mask_values` is set, files that name values are not needed.

    Returns:
        The name of the structure by value ("1") or colour ("#fa3253"), and lines for the user.

    Raises:
        UserError: If two files give a value two names.
        OSError: If a file cannot be read.
    """
    found: dict[str, str] = {}
    said: list[str] = []
    if settings.mask_values:
        return found, said
    by_file: dict[str, Mapping[str, str]] = {}
    for entry in tree.files:
        name = entry.path.rpartition("/")[2].lower()
        if (
            name not in (_LABELMAP, _DATASET, *TABLES_OF_VALUES)
            or entry.path.count("/") > _DEEPEST
            or entry.size > _MOST_BYTES
        ):
            continue
        names = {_LABELMAP: _of_labelmap, _DATASET: _of_dataset}.get(name, _of_table)(entry)
        if names:
            found |= names
            by_file[entry.path] = names
            few = ", ".join(f"{value} {shown(one)}" for value, one in list(names.items())[:6])
            said.append(f"labels: {shown(entry.path)} names {counted(len(names), 'value')}: {few}")
    require_same_names(by_file)
    return found, said


def require_same_names(by_place: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that no value has two names.

    Args:
        by_place: The names by value, by the file or root that has them.

    Raises:
        UserError: If a value has two names.
    """
    first: dict[str, tuple[str, str]] = {}
    for place, names in by_place.items():
        for value, name in names.items():
            other, known = first.setdefault(value, (place, name))
            if words_of(known) != words_of(name):
                raise UserError(
                    f"{shown(other)} names the value {value} of masks {known!r}, and {shown(place)} names it {name!r}. "
                    "Expected one name: shard these corpora one by one, or set corpus.mask_values."
                )


def _of_labelmap(entry: Entry) -> dict[str, str]:
    lines = entry.place.read_bytes().decode(errors="replace").splitlines()
    matches = [match for line in lines if (match := _LINE.fullmatch(line.strip()))]
    return {
        "#{:02x}{:02x}{:02x}".format(*(min(int(match[part]), 255) for part in ("red", "green", "blue"))): match["name"]
        for match in matches
    }


def _of_dataset(entry: Entry) -> dict[str, str]:
    """Reads the part `labels` of nnU-Net: names by value in version 1, values by name in version 2."""
    try:
        content = json.loads(entry.place.read_bytes())
    except (ValueError, RecursionError):
        return {}
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, Mapping):
        return {}
    pairs = [(str(key), str(value)) for key, value in labels.items() if isinstance(value, str | int)]
    if all(_is_number(key) for key, _ in pairs):
        return dict(pairs)
    return {value: key for key, value in pairs if _is_number(value)}


def _of_table(entry: Entry) -> dict[str, str]:
    """Reads the columns `Pixel Value` and `Class` of Roboflow, or `name`, `r`, `g` and `b` of CamVid."""
    try:
        table = read_table(entry.place)
    except UserError:
        return {}
    by_name = {plain(column): column for column in table.columns}
    name = by_name.get(plain("class")) or by_name.get(plain("name"))
    value, colour = by_name.get(plain("pixel value")), [by_name.get(part, "") for part in "rgb"]
    if name and value:
        return {row[value]: row[name] for row in table.rows if _is_number(row[value])}
    if name and all(colour):
        rows = [(row[name], [row[part] for part in colour]) for row in table.rows]
        return {
            "#" + "".join(f"{min(int(part), 255):02x}" for part in parts): structure
            for structure, parts in rows
            if all(_is_number(part) and len(part) < 4 for part in parts)
        }
    return {}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
