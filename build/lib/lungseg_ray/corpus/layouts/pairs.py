"""The layout `pairs`: images/ and masks/, matched by name, with an optional index of patients, splits and groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Layout, Listing, complete, join, make_record
from lungseg_ray.corpus.layouts.table import (
    PATIENT_COLUMNS,
    TableRow,
    check_once,
    first,
    groups_of,
    read_table,
    split_of,
)
from lungseg_ray.corpus.layouts.tree import DICOM_SUFFIXES, SUFFIXES, Entry, FileTree
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import named, shown

EXPECTS = "images/ and masks/, files of one name in both, and an index.csv or index.parquet if there is one"
_FOLDERS = ("images", "masks")
_STEM_COLUMNS = ("stem", "image_id")
_INDEXES = ("index.csv", "index.parquet")
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES)


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout, which is both folders, unless all images are DICOM; empty if none."""
    if not set(_FOLDERS) <= tree.folders:
        return ""
    images = [path for found in tree.match(_files("images")).values() for path in (entry.path for entry in found)]
    return (
        "" if images and all(path.lower().endswith(DICOM_SUFFIXES) for path in images) else "found images/ and masks/"
    )


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Matches images and masks by `image_id`, which is the path below their folder without its suffix.

    An image that the index does not name, or for which it names no patient, has a patient of its own. A row of the
    index without an image is set aside, and so are images that share one id.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus.

    Returns:
        The listing. The further columns of the index are its groups.

    Raises:
        UserError: If a folder is missing, if there are no images, or if the index is wrong.
        OSError: If the index cannot be read from a disk, or from a bucket (`StorageError`).
    """
    if not set(_FOLDERS) <= tree.folders:
        raise UserError(
            f"{tree.root}: the layout pairs expects the folders images/ and masks/, found {tree.describe()}. "
            "Correct corpus.root or corpus.layout."
        )
    images, masks = (tree.match(_files(folder)) for folder in _FOLDERS)
    unusable = tree.unusable(_FOLDERS)
    if not images and not unusable:
        raise UserError(f"{tree.root / 'images'}: expected images ({', '.join(SUFFIXES)}), found none.")
    index = next((entry.place for name in _INDEXES for entry in tree.files if entry.path == name), None)
    rows = {} if index is None else _read_index(index)

    def make(image_id: str, image: Entry, files: Sequence[Entry]) -> Record:
        number, row = rows.get(image_id, (0, {}))
        record = make_record(image_id, image, files, settings, groups_of(row, _STEM_COLUMNS))
        return replace(record, patient_id=first(row, PATIENT_COLUMNS) or image_id, split=split_of(row, index, number))

    listing = join("pairs", {"images": images}, {"masks": masks}, make)
    lonely = [
        SetAside(
            shown(image_id),
            str(index),
            "no_image",
            f"row {number} after the header names it; expected images/{shown(image_id)} with "
            f"{', '.join(SUFFIXES)}, found none",
        )
        for image_id, (number, _) in rows.items()
        if image_id not in images and image_id not in masks
    ]
    known = sum(len(found) for folder in (images, masks) for found in folder.values())
    ignored = tree.count(re.compile("(images|masks)/.*", re.DOTALL)) - known
    return complete(listing, set_aside=[*lonely, *unusable], ignored=ignored)


def _files(folder: str) -> re.Pattern[str]:
    """Matches the files of a folder except hidden ones, which some file systems create beside each image."""
    return re.compile(rf"{folder}/(?P<id>(.*/)?[^/.][^/]*)({_SUFFIX})", re.IGNORECASE | re.DOTALL)


def _read_index(index: Location) -> dict[str, tuple[int, TableRow]]:
    """Returns the rows by image id, each with its number, counted from 1 after the header."""
    table = read_table(index)
    if not set(_STEM_COLUMNS) & set(table.columns):
        raise UserError(f"{index}: expected a column stem (or image_id), found {named(table.columns)}.")
    ids = [first(row, _STEM_COLUMNS) for row in table.rows]
    if "" in ids:
        raise UserError(f"{index}: row {ids.index('') + 1} after the header has no stem.")
    check_once(index, ids, range(1, len(ids) + 1))
    return {image_id: (number, row) for number, (image_id, row) in enumerate(zip(ids, table.rows, strict=True), 1)}


PAIRS = Layout("pairs", EXPECTS, recognise, read)
