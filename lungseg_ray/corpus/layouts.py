"""What a corpus holds: which mask belongs to which image, whose image it is, and which files cannot be used."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.record import SPLITS, Record, SetAside, Split
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, locate

SUFFIXES = (".png", ".jpg", ".jpeg")
_TABLES = (".csv", ".parquet")
_STEM_COLUMNS = ("stem", "image_id")
_PATIENT_COLUMNS = ("patient_id", "patient")
_MANIFEST_COLUMNS = ("image_uri", "mask_uri")
# The size is read from the pixels; as groups these columns would have one value per image.
_NO_GROUPS = ("width", "height")


@dataclass(frozen=True)
class Listing:
    """The content of a corpus, before any image is read.

    Attributes:
        records: images with a mask, ordered by `image_id`.
        set_aside: files that cannot be used, ordered by `image_id`.
        layout: "pairs", "manifest" or "phantom".
        ignored: files in images/ and masks/ whose suffix is not one of `SUFFIXES`.
    """

    records: list[Record]
    set_aside: list[SetAside]
    layout: str
    ignored: int = 0


def list_corpus(settings: CorpusSettings) -> Listing:
    """Lists a corpus, in a folder or a bucket, without opening an image.

    pairs: images/ and masks/ are matched by the path below them without its suffix, which is the `image_id`. An
        index.csv or index.parquet beside them may add, by `stem` (or `image_id`), the columns `patient_id` (or
        `patient`), `split`, and groups. An image that the index does not name is a patient of its own; a row that
        names no image is set aside, as are images that share one id.
    manifest: a CSV or Parquet file with `image_uri` and `mask_uri` (relative to the file's folder), and where known
        `patient_id`, `split`, and groups. The `image_id` is the stem where it is unique in the file, else the path as
        written without its suffix. Its records have no `size` and no `modified_ns`: that would take a request per file.
    phantom: the root `phantom` with the layout `auto` stands for drawn chests.

    Images without a patient are a patient of their own.

    Raises:
        UserError: if nothing of the kind is there, or if an index or a manifest is wrong.
    """
    if settings.root == "phantom" and settings.layout == "auto":
        return Listing(phantom.list_phantoms(settings.phantom), [], "phantom")
    root = locate(settings.root)
    is_table = root.name.lower().endswith(_TABLES)
    if settings.layout == "manifest" and not is_table:
        raise UserError(f"{root}: the layout manifest expects a .csv or .parquet file; set corpus.root to one.")
    if is_table and settings.layout != "pairs":
        return _list_manifest(root)
    return _list_pairs(root)


def _list_pairs(root: Location) -> Listing:
    files = {place.uri[len(root.uri) + 1 :]: (place, info) for place, info in root.list(recursive=True)}
    folders = {
        path.split("/", 1)[0] for path, (_, info) in files.items() if "/" in path or info.type != fs.FileType.File
    }
    if not {"images", "masks"} <= folders:
        found = ", ".join(sorted({path.split("/", 1)[0] for path in files})[:8]) or "nothing"
        raise UserError(
            f"{root}: expected the folders images/ and masks/, or a .csv or .parquet manifest; found {found}. "
            "Set corpus.root to such a folder or file, or to 'phantom'."
        )
    images, ignored_images = _by_stem(files, "images")
    masks, ignored_masks = _by_stem(files, "masks")
    if not images:
        raise UserError(f"{root / 'images'}: expected images ({', '.join(SUFFIXES)}), found none.")
    index = next((files[name][0] for name in ("index.csv", "index.parquet") if name in files), None)
    rows = {} if index is None else _read_index(index)

    records: list[Record] = []
    aside: list[SetAside] = []
    for image_id in sorted(images.keys() | masks.keys() | rows.keys()):
        found_images, found_masks = images.get(image_id, []), masks.get(image_id, [])
        twins = found_images if len(found_images) > 1 else found_masks if len(found_masks) > 1 else []
        if twins:
            names = ", ".join(place.name for place, _ in twins)
            aside.append(
                SetAside(image_id, twins[0][0].uri, "ambiguous", f"expected one file of this name, found {names}")
            )
        elif not found_images and not found_masks:
            detail = (
                f"row {rows[image_id][0]} names it; expected images/{image_id} with {', '.join(SUFFIXES)}, found none"
            )
            aside.append(SetAside(image_id, str(index), "no_image", detail))
        elif not found_images:
            mask = found_masks[0][0]
            aside.append(SetAside(image_id, mask.uri, "no_image", f"expected images/{image_id}, found masks/ alone"))
        elif not found_masks:
            image = found_images[0][0]
            aside.append(SetAside(image_id, image.uri, "no_mask", f"expected masks/{image_id}, found images/ alone"))
        else:
            (image, image_info), (mask, mask_info) = found_images[0], found_masks[0]
            number, row = rows.get(image_id, (0, {}))
            records.append(
                Record(
                    image_id=image_id,
                    image_uri=image.uri,
                    mask_uri=mask.uri,
                    patient_id=_first(row, _PATIENT_COLUMNS) or image_id,
                    split=_split(row, index, number),
                    groups=_groups(row, (*_STEM_COLUMNS, *_PATIENT_COLUMNS)),
                    size=image_info.size + mask_info.size,
                    modified_ns=max(image_info.mtime_ns, mask_info.mtime_ns),
                )
            )
    return Listing(records, aside, "pairs", ignored_images + ignored_masks)


_Files = dict[str, list[tuple[Location, fs.FileInfo]]]


def _by_stem(files: Mapping[str, tuple[Location, fs.FileInfo]], folder: str) -> tuple[_Files, int]:
    found: _Files = defaultdict(list)
    ignored = 0
    for path, (place, info) in files.items():
        if info.type != fs.FileType.File or not path.startswith(f"{folder}/"):
            continue
        if path.lower().endswith(SUFFIXES) and not place.name.startswith("."):
            found[path[len(folder) + 1 :].rsplit(".", 1)[0]].append((place, info))
        else:
            ignored += 1
    return found, ignored


def _read_index(index: Location) -> dict[str, tuple[int, dict[str, str]]]:
    """Rows by image id, each with its number, from 1 after the header."""
    columns, rows = _read_table(index)
    if not set(_STEM_COLUMNS) & set(columns):
        raise UserError(f"{index}: expected a column stem (or image_id), found {', '.join(columns)}.")
    found: dict[str, tuple[int, dict[str, str]]] = {}
    for number, row in enumerate(rows, start=1):
        image_id = _first(row, _STEM_COLUMNS)
        if not image_id:
            raise UserError(f"{index}: row {number} after the header has no stem.")
        if image_id in found:
            raise UserError(
                f"{index}: rows {found[image_id][0]} and {number} after the header both name {image_id}; expected one."
            )
        found[image_id] = (number, row)
    return found


def _list_manifest(manifest: Location) -> Listing:
    if not manifest.is_file():
        raise UserError(f"{manifest}: expected a manifest, found no such file. Correct corpus.root.")
    columns, rows = _read_table(manifest)
    missing = [column for column in _MANIFEST_COLUMNS if column not in columns]
    if missing:
        raise UserError(
            f"{manifest}: expected the columns image_uri and mask_uri (and where known patient_id, split), found "
            f"{', '.join(columns)}; {', '.join(missing)} is missing."
        )
    folder = Location(manifest.uri.rsplit("/", 1)[0])
    stems = Counter(_without_suffix(row["image_uri"]).rsplit("/", 1)[-1] for row in rows)
    first: dict[str, int] = {}
    records: list[Record] = []
    aside: list[SetAside] = []
    for number, row in enumerate(rows, start=1):
        written = row["image_uri"]
        if not written:
            raise UserError(f"{manifest}: row {number} after the header has no image_uri.")
        path = _without_suffix(written)
        stem = path.rsplit("/", 1)[-1]
        image_id = stem if stems[stem] == 1 else path
        if image_id in first:
            raise UserError(
                f"{manifest}: rows {first[image_id]} and {number} after the header both name {image_id}; expected one."
            )
        first[image_id] = number
        image_uri = _resolve(written, folder)
        if not row["mask_uri"]:
            aside.append(SetAside(image_id, image_uri, "no_mask", f"row {number} after the header has no mask_uri"))
            continue
        records.append(
            Record(
                image_id=image_id,
                image_uri=image_uri,
                mask_uri=_resolve(row["mask_uri"], folder),
                patient_id=_first(row, _PATIENT_COLUMNS) or image_id,
                split=_split(row, manifest, number),
                groups=_groups(row, (*_MANIFEST_COLUMNS, *_PATIENT_COLUMNS)),
            )
        )
    if not first:
        raise UserError(f"{manifest}: expected a row per image, found none.")
    by_id = sorted(records, key=lambda record: record.image_id)
    return Listing(by_id, sorted(aside, key=lambda item: item.image_id), "manifest")


def _without_suffix(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name[1:] else name)


def _resolve(written: str, folder: Location) -> str:
    return locate(written).uri if "://" in written or written.startswith("/") else (folder / written).uri


def _read_table(place: Location) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows; every value as text, since a patient 007 is not the number 7; nothing is ""."""
    data = place.read_bytes()
    if place.name.lower().endswith(".parquet"):
        try:
            table = pq.read_table(io.BytesIO(data))
        except pa.ArrowInvalid as error:
            raise UserError(f"{place}: expected a Parquet file: {error}") from error
        return table.column_names, [
            {name: "" if value is None else str(value).strip() for name, value in row.items()}
            for row in table.to_pylist()
        ]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: expected a CSV file in UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise UserError(
                f"{place}: row {number} after the header has more values than the header has columns "
                f"({', '.join(reader.fieldnames or [])}). Put quotes around values that hold a comma."
            )
        rows.append({name: (value or "").strip() for name, value in row.items()})
    return list(reader.fieldnames or []), rows


def _first(row: Mapping[str, str], columns: Iterable[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _split(row: Mapping[str, str], table: Location | None, number: int) -> Split | None:
    written = row.get("split", "")
    wanted = {"valid": "val", "validation": "val"}.get(written.lower(), written.lower())
    for side in SPLITS:
        if wanted == side:
            return side
    if written:
        raise UserError(
            f"{table}: row {number} after the header has the split {written!r}; "
            f"expected {', '.join(SPLITS)} or nothing."
        )
    return None


def _groups(row: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    without = {*known, *_NO_GROUPS, "split"}
    return {name: value for name, value in row.items() if name not in without and value}
