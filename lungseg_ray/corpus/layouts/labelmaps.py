"""Files beside masks that say which structure each value or colour is: those of CVAT, VOC and nnU-Net."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.tree import Entry, FileTree
from lungseg_ray.corpus.structures import words_of
from lungseg_ray.errors import UserError
from lungseg_ray.text import counted, shown

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
        if name not in (_LABELMAP, _DATASET) or entry.path.count("/") > _DEEPEST or entry.size > _MOST_BYTES:
            continue
        names = _of_labelmap(entry) if name == _LABELMAP else _of_dataset(entry)
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
