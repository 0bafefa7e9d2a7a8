"""The layout `manifest`: a table with the path of each image and of its mask."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from urllib.parse import urlsplit

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.dicom import tag_patients
from lungseg_ray.corpus.layouts.listing import Listing, NoLayoutError
from lungseg_ray.corpus.layouts.patients import AUTO, NONE, name_patients
from lungseg_ray.corpus.layouts.roles import read_words
from lungseg_ray.corpus.layouts.table import (
    Column,
    TableRow,
    UserTable,
    check_once,
    groups_of,
    patient_column,
    plain,
    read_table,
    split_of,
)
from lungseg_ray.corpus.layouts.tree import SUFFIXES, FilesState, entries_of, state_of
from lungseg_ray.corpus.record import MaskSource, Record, SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.storage import Location, locate
from lungseg_ray.text import counted, is_utf8, named, shown, without_suffix

EXPECTS = "a .csv, .tsv, .xlsx or .parquet file with a column for images and one for masks (image_uri, mask_uri)"
LONGEST_PATH = 4096
"""The maximum length of a path, characters. No system opens longer paths."""
_SECRET = ("@", "?")
_SEVERAL = "|"
_NOTHING = {"", "nan", "none", "null", "na", "n/a", "-"}


def list_manifest(manifest: Location, settings: CorpusSettings) -> Listing:
    """Lists the rows of a manifest. Of the files that they name, only DICOM files are opened, for their patients.

    Paths are relative to the folder of the manifest and must stay in it, unless `settings.outside` is true. A cell may
    name several masks, separated by "|", which are united. The `image_id` is the stem of the path if that is unique in
    the manifest, else the path as written, without its suffix.

    Args:
        manifest: The table.
        settings: The settings of the corpus.

    Returns:
        The listing. Rows without a mask, and rows with a path that is not allowed, are set aside.

    Raises:
        UserError: If there is no such file, if it is not a table, lacks a column, has no rows, names an image twice, or
            has a row without an image or with an unknown split.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    if not manifest.is_file():
        raise UserError(f"{manifest}: expected a manifest, found no such file. Correct corpus.root.")
    table = read_table(manifest)
    columns = _columns(table, settings)
    image_column, mask_column = columns["image"] or "", columns["mask"] or ""
    if not table.rows:
        raise UserError(f"{manifest}: expected a row per image, found none.")
    lacking = next((number for number, row in enumerate(table.rows, 1) if not row[image_column]), 0)
    if lacking:
        raise UserError(f"{manifest}: row {lacking} after the header has no {image_column}.")
    folder = Location(manifest.uri.rsplit("/", 1)[0] or "/")
    written = [_slashes(row[image_column]) for row in table.rows]
    stems = Counter(map(_stem, written))
    used: dict[int, str] = {}
    records: list[Record] = []
    aside: list[SetAside] = []
    for number, (row, image_path) in enumerate(zip(table.rows, written, strict=True), start=1):
        stem = _stem(image_path)
        alone = stems[stem] == 1
        try:
            image = _resolve(image_path, folder, outside=settings.outside)
            masks = tuple(_resolve(one, folder, outside=settings.outside) for one in _masks(row[mask_column]))
        except BadFileError as error:
            # The path is not repeated, because it may contain a secret.
            image_id = shown(stem) if alone and stem else f"row {number}"
            aside.append(
                SetAside(image_id, manifest.uri, error.reason, f"row {number} after the header {error.detail}")
            )
            continue
        image_id = used[number] = stem if alone and stem else _path_as_id(image_path)
        if masks:
            records.append(_record(image_id, image, masks, row, manifest, number, columns, settings))
        else:
            aside.append(SetAside(image_id, image, "no_mask", f"row {number} after the header has no {mask_column}"))
    check_once(manifest, list(used.values()), list(used))
    records = _with_states(records)
    records.sort(key=lambda record: record.image_id)
    said = [f"{what} from the column {shown(name)}" for what, name in columns.items() if name]
    recognition = [f"table: {', '.join(said)}" + (f"; read {table.note}" if table.note else "")]
    warnings: list[str] = []
    if columns["patient"] and (without := sum(not record.patient_id for record in records)):
        warnings.append(
            f"{without} of {counted(len(records), 'image')} have no value in the column {shown(columns['patient'])}, "
            "and count as patients of their own. If they are of known patients, name these."
        )
    if not columns["patient"] and settings.patients != NONE:
        records, tagged = tag_patients(records) if settings.patients == AUTO else (records, 0)
        if tagged:
            recognition.append(f"patients: {counted(tagged, 'patient')} from the tags of the DICOM files")
        records, patients = name_patients(
            records,
            {record.image_id: record.image_uri.removeprefix(f"{folder.uri}/") for record in records},
            settings.patients,
        )
        recognition += [f"patients: {said}" for said in patients.said]
        warnings += patients.doubts
    aside.sort(key=lambda one: one.image_id)
    told = sorted(f"{record.image_uri}\0{record.state}\n" for record in records)
    state = FilesState(len(records), hashlib.sha256("".join(told).encode()).hexdigest())
    return Listing(records, aside, "manifest", files=[state], recognition=recognition, warnings=warnings)


def _columns(table: UserTable, settings: CorpusSettings) -> dict[Column, str | None]:
    """Finds the columns of a manifest.

    Raises:
        NoLayoutError: If there is none for images or none for masks.
    """
    found: dict[Column, str | None] = {
        "image": table.find("image", settings.columns),
        "mask": table.find("mask", settings.columns),
        "patient": table.find("patient", settings.columns) if settings.patients == AUTO else None,
        "split": table.find("split", settings.columns),
    }
    if settings.patients != AUTO:
        found["patient"] = patient_column(table, settings.patients)
    if "mask" not in settings.columns and not _names_files(table, found["mask"]):
        # A column "label" may hold diagnoses.
        others = [
            name
            for name in table.columns
            if name != found["image"] and _names_files(table, name) and read_words(name).role == "mask"
        ]
        found["mask"] = (
            others[0] if found["mask"] and len(others) == 1 and plain(others[0]) != "image" else found["mask"]
        )
    needed: tuple[Column, ...] = ("image", "mask")
    missing = [name for name in needed if not found[name]]
    if missing:
        raise NoLayoutError(
            f"{table.place}: expected a column for images and one for masks, such as image_uri and mask_uri (and where "
            f"known patient_id, split), found {named(table.columns)}. Name the missing one: "
            + " ".join(f"--corpus.columns {name}=COLUMN" for name in missing)
        )
    return found


def _names_files(table: UserTable, column: str | None) -> bool:
    values = [row[column].lower() for row in table.rows[:200] if row[column]] if column else []
    return bool(values) and sum(value.endswith(SUFFIXES) for value in values) > len(values) / 2


def _slashes(written: str) -> str:
    """Returns a path of Windows with the separators of other systems."""
    return written.replace("\\", "/") if "\\" in written and "/" not in written else written


def _masks(cell: str) -> list[str]:
    if cell.strip().lower() in _NOTHING:
        return []
    parts = re.split(r"[|;]", cell.strip("[] ").replace("', '", _SEVERAL).replace("','", _SEVERAL))
    return [_slashes(one) for part in parts if (one := part.strip(" '\""))]


def _record(
    image_id: str,
    image: str,
    masks: tuple[str, ...],
    row: TableRow,
    manifest: Location,
    number: int,
    columns: dict[Column, str | None],
    settings: CorpusSettings,
) -> Record:
    return Record(
        image_id=image_id,
        image_uri=image,
        masks=tuple(MaskSource(mask) for mask in dict.fromkeys(masks)),
        patient_id=row[columns["patient"]] if columns["patient"] else "",
        split=split_of(row, columns["split"], manifest, number),
        groups=groups_of(row, columns.values()),
        mask_scales=settings.mask_scales,
    )


def _with_states(records: list[Record]) -> list[Record]:
    """Adds the states of the files, so that it is noticed where others take their places."""
    entries = entries_of(Location(uri) for record in records for uri in (record.image_uri, *record.mask_uris))
    return [
        replace(record, state=state_of(entries[uri] for uri in (record.image_uri, *record.mask_uris) if uri in entries))
        for record in records
    ]


def _stem(written: str) -> str:
    """Returns the name of the file without its suffix, and without the parts of a URI that may be secret."""
    if "://" in written:
        written = written.split("?", 1)[0].rpartition("@")[2]
    return without_suffix(written.rstrip("/").rsplit("/", 1)[-1])


def _path_as_id(written: str) -> str:
    return without_suffix(written if "://" in written else posixpath.normpath(written))


def _resolve(written: str, folder: Location, *, outside: bool) -> str:
    """Returns the URI of a path, without any `..`; raises `bad_path` if it is not valid or must not be followed."""
    scheme, sign, rest = written.partition("://")
    # The message must not repeat the URI, because it may contain a password or a signature.
    if sign and any(mark in (rest.split("/", 1)[0] if scheme == "file" else written) for mark in _SECRET):
        raise _bad(
            "names a URI with '@' or '?'; expected a bucket and a path alone. Keys come from the environment "
            "(AWS_ACCESS_KEY_ID), so that they are written nowhere"
        )
    if len(written) > LONGEST_PATH or "\0" in written:
        found = "a NUL byte" if "\0" in written else f"{len(written)} characters"
        raise _bad(f"names {shown(written)}; expected a path of at most {LONGEST_PATH} characters, found {found}")
    store = folder.uri[: -len(folder.path)]
    if sign or written.startswith("/"):
        place = _of_uri(written) if sign else Location(_normal(written))
        inside = place.uri.startswith(f"{store}{_normal(folder.path).rstrip('/')}/")
    else:
        path = _normal(written)
        inside = path.split("/", 1)[0] not in (".", "..")
        place = folder / path if inside else Location(store + _normal(f"{folder.path}/{path}"))
    if inside and place.is_local:
        inside = _real(place.path).startswith(f"{_real_folder(folder.path).rstrip('/')}/")
    if not outside and not inside:
        raise _bad(
            f"names {shown(written)}; expected a path within the manifest's folder, found one that leaves it. "
            "Set corpus.outside to true if it may be read"
        )
    if place.path.startswith("../") or (not place.is_local and "/" not in place.path):
        raise _bad(f"names {shown(written)}; expected a bucket and a file in it, found no file")
    return place.uri


def _real(path: str) -> str:
    """Returns the path of a file with all links resolved; the links of each folder are resolved only once."""
    folder, name = posixpath.split(path)
    path = posixpath.join(_real_folder(folder), name)
    # To make a Path takes longer than the look.
    return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _of_uri(written: str) -> Location:
    try:
        if written.startswith("file:"):
            parts = urlsplit(written)
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or set("?#") & set(written):
                raise _bad("names a file:// URI with a host, '?' or '#'; expected file:///PATH")
        place = locate(written)
    except (UserError, ValueError):
        raise _bad(f"names {shown(written)}; expected a path, or s3://BUCKET/PATH") from None
    if "\0" in place.uri or not is_utf8(place.uri):
        raise _bad(f"names {shown(written)}; expected a name in UTF-8 without NUL")
    return Location(place.uri[: -len(place.path)] + _normal(place.path))


def _normal(path: str) -> str:
    """Removes `.`, `..` and empty parts. Two leading slashes, whose meaning POSIX leaves open, become one."""
    normal = posixpath.normpath(path)
    return f"/{normal.lstrip('/')}" if normal.startswith("/") else normal


def _bad(detail: str) -> BadFileError:
    return BadFileError("bad_path", detail)
