"""The layout `manifest`: a table with the path of each image and of its mask."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Listing
from lungseg_ray.corpus.layouts.table import (
    PATIENT_COLUMNS,
    TableRow,
    check_once,
    first,
    groups_of,
    read_table,
    split_of,
)
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.storage import Location, locate
from lungseg_ray.text import is_utf8, named, shown, without_suffix

EXPECTS = "a .csv or .parquet file with the columns image_uri and mask_uri"
LONGEST_PATH = 4096
"""The maximum length of a path, characters. No system opens longer paths."""
_COLUMNS = ("image_uri", "mask_uri")
_SECRET = ("@", "?")


def list_manifest(manifest: Location, settings: CorpusSettings) -> Listing:
    """Lists the rows of a manifest, without accessing the files that they name.

    Paths are relative to the folder of the manifest and must stay in it, unless `settings.outside` is true. The
    `image_id` is the stem of the path if that is unique in the manifest, else the path as written, without its suffix.
    The records have no `size` and no `modified_ns`, which would take one request per file.

    Args:
        manifest: The CSV or Parquet file.
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
    missing = [column for column in _COLUMNS if column not in table.columns]
    if missing:
        raise UserError(
            f"{manifest}: expected the columns image_uri and mask_uri (and where known patient_id, split), found "
            f"{named(table.columns)}; {', '.join(missing)} is missing."
        )
    if not table.rows:
        raise UserError(f"{manifest}: expected a row per image, found none.")
    lacking = next((number for number, row in enumerate(table.rows, 1) if not row["image_uri"]), 0)
    if lacking:
        raise UserError(f"{manifest}: row {lacking} after the header has no image_uri.")
    folder = Location(manifest.uri.rsplit("/", 1)[0] or "/")
    stems = Counter(_stem(row["image_uri"]) for row in table.rows)
    used: dict[int, str] = {}
    records: list[Record] = []
    aside: list[SetAside] = []
    for number, row in enumerate(table.rows, start=1):
        stem = _stem(row["image_uri"])
        alone = stems[stem] == 1
        try:
            image = _resolve(row["image_uri"], folder, outside=settings.outside)
            mask = _resolve(row["mask_uri"], folder, outside=settings.outside) if row["mask_uri"] else ""
        except BadFileError as error:
            # The path is not repeated, because it may contain a secret.
            image_id = shown(stem) if alone and stem else f"row {number}"
            aside.append(
                SetAside(image_id, manifest.uri, error.reason, f"row {number} after the header {error.detail}")
            )
            continue
        image_id = used[number] = stem if alone and stem else _path_as_id(row["image_uri"])
        if mask:
            records.append(_record(image_id, image, mask, row, manifest, number, settings))
        else:
            aside.append(SetAside(image_id, image, "no_mask", f"row {number} after the header has no mask_uri"))
    check_once(manifest, list(used.values()), list(used))
    records.sort(key=lambda record: record.image_id)
    return Listing(records, sorted(aside, key=lambda one: one.image_id), "manifest")


def _record(
    image_id: str, image: str, mask: str, row: TableRow, manifest: Location, number: int, settings: CorpusSettings
) -> Record:
    return Record(
        image_id=image_id,
        image_uri=image,
        mask_uris=(mask,),
        patient_id=first(row, PATIENT_COLUMNS) or image_id,
        split=split_of(row, manifest, number),
        groups=groups_of(row, _COLUMNS),
        mask_scale=settings.mask_scale,
    )


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
    return os.path.realpath(path) if Path(path).is_symlink() else path


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
