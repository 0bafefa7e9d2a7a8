"""The layout `dicom`: a tree of DICOM files as an archive exports it, with the patient of each image in its tags."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import dicom
from lungseg_ray.corpus.layouts.annotated import Annotations, find_annotations
from lungseg_ray.corpus.layouts.listing import Layout, Listing, make_record
from lungseg_ray.corpus.layouts.matching import Item, match
from lungseg_ray.corpus.layouts.roles import Roles
from lungseg_ray.corpus.layouts.tree import DICOM_SUFFIXES, SUFFIXES, Entry, FileTree
from lungseg_ray.corpus.picture import check_bytes
from lungseg_ray.corpus.privacy import Salt, find_salt
from lungseg_ray.corpus.read import fault_of_file, redact_paths
from lungseg_ray.corpus.record import STUDY_KEY, MaskSource, Record, SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry, translate_errors

EXPECTS = "DICOM files in any folders, and the mask of images/a/b.dcm, or of a/b.dcm, as masks/a/b.png"
_READERS = 16
"""The number of files whose tags are read at the same time."""
_HEAD_BYTES = 1 << 17
"""The number of bytes that are read first. They nearly always contain the tags: one request to a bucket is enough."""
_PROBED = 16
"""The number of files without a suffix that are opened to recognise the layout."""

TagsOrError = dicom.Tags | BadFileError | None
"""The tags of a file, the reason why they cannot be read, or None for a file that is not DICOM in content or name."""


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout: file names, or the first bytes of a few files that have no suffix.

    Args:
        tree: The files of the corpus.

    Returns:
        The evidence as a clause; empty if there is none.
    """
    candidates = [entry for entry in tree.files if may_be_dicom(entry.path.rpartition("/")[2])]
    roles = Roles(entry.path.rpartition("/")[0] for entry in tree.files) if candidates else Roles([])
    images = [entry for entry in candidates if roles.parse(entry.path.rpartition("/")[0]).role != "mask"]
    if any(entry.path.lower().endswith(DICOM_SUFFIXES) for entry in images):
        return f"found files named {' or '.join(DICOM_SUFFIXES)}"
    return "found DICOM files without a suffix" if any(map(_begins_as_dicom, islice(images, _PROBED))) else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists a tree of DICOM files, and reads the tags of each. An image without a mask is unlabelled.

    Patient and study are replaced by keys of their tags, and `image_id` is a key of the path, because paths often
    contain UIDs or names. Only these keys may be written anywhere.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus.

    Returns:
        The listing; its records are `private`.

    Raises:
        UserError: If there is no DICOM file, or no salt for the keys.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    salt = find_salt()
    roles = Roles(entry.path.rpartition("/")[0] for entry in tree.files)
    items = [Item(entry, roles.parse(entry.path.rpartition("/")[0])) for entry in tree.files]
    images = [item for item in items if _is_image(item)]
    masks = [item for item in items if item.parsed.role == "mask" and item.name.endswith(SUFFIXES)]
    annotations = find_annotations(tree, settings) if not masks else Annotations()
    masks = masks or annotations.items
    found = Listing([], [], "dicom", recognition=annotations.said, warnings=annotations.doubts)
    good: dict[str, tuple[Item, dicom.Tags]] = {}
    ignored = len(tree.files) - len(images) - (len(annotations.used) or len(masks))

    def set_aside(entry: Entry, reason: str, detail: str) -> None:
        image_id = salt.key("path", entry.path)
        found.set_aside.append(SetAside(image_id, image_id, reason, detail))

    for item, tags in zip(images, _all_tags([item.entry for item in images], salt), strict=True):
        if tags is None:
            ignored += 1
        elif isinstance(tags, BadFileError):
            set_aside(item.entry, tags.reason, tags.detail)
        else:
            good[item.entry.path] = item, tags
    matches = match([item for item, _ in good.values()], masks)
    claimed = {path: mask for mask, paths in matches.ambiguous.items() for path in paths}
    for path, (item, tags) in good.items():
        parts = matches.parts[path]
        if path in claimed or len(parts) > 1:
            several = len(matches.ambiguous[claimed[path]]) if path in claimed else 1
            detail = f"expected one image and one mask of a name, found {several} and {max(len(parts), 1)}"
            set_aside(item.entry, "ambiguous", detail)
            continue
        image_id = salt.key("path", item.entry.path)
        record = make_record(image_id, item.entry, [part.item.entry for part in parts], settings, _groups(tags, salt))
        sources = tuple(part.item.source or MaskSource(part.item.entry.place.uri) for part in parts)
        record = replace(record, masks=sources, patient_id=_patient(tags, salt) or image_id, private=True)
        (found.records if parts else found.unlabelled).append(replace(record, split=item.parsed.split))
    if not (found.records or found.unlabelled or found.set_aside):
        raise UserError(f"{tree.name}: the layout dicom expects {EXPECTS}; found no DICOM file.")
    for lonely in [] if annotations.items else matches.lonely:
        set_aside(lonely.entry, "no_image", "expected its image, found the mask alone")
    for unusable in tree.unusable():
        image_id = salt.key("path", unusable.uri)
        found.set_aside.append(replace(unusable, image_id=image_id, uri=image_id))
    for group in (found.records, found.unlabelled, found.set_aside):
        group.sort(key=lambda one: one.image_id)
    return replace(found, ignored=ignored, keep_empty=annotations.marks_nothing)


def find_path(root: Location, key: str) -> str:
    """Finds the file whose `image_id` in this layout is a given key.

    Args:
        root: The root of the corpus.
        key: The `image_id`.

    Returns:
        The URI of the file.

    Raises:
        UserError: If the folder cannot be listed, if there is no salt, or if no file has this key.
        StorageError: If the bucket cannot be used.
    """
    salt, tree = find_salt(), FileTree.of(root)
    for entry in tree.files:
        if salt.key("path", entry.path) == key:
            return entry.place.uri
    for unusable in tree.unusable():
        if salt.key("path", unusable.uri) == key:
            return unusable.uri
    raise UserError(f"{root}: no file has the key {key} with the salt of {salt.source}. Was it made with another salt?")


def tag_patients(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Gives the patients that tags name to records of DICOM files that have no patient.

    Args:
        records: The records. One whose `patient_id` is not its `image_id` has a patient already, and keeps it.

    Returns:
        The records, with keys of patients, and the number of these patients.

    Raises:
        UserError: If there is no salt for the keys.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    free = [
        record
        for record in records
        if record.patient_id == record.image_id and record.image_uri.lower().endswith(DICOM_SUFFIXES)
    ]
    if not free:
        return list(records), 0
    salt = find_salt()
    entries = [Entry(record.image_id, Location(record.image_uri), 0, 0) for record in free]
    found = {
        record.image_id: patient
        for record, tags in zip(free, _all_tags(entries, salt), strict=True)
        # A file that cannot be read is set aside when its pixels are read.
        if isinstance(tags, dicom.Tags) and (patient := _patient(tags, salt))
    }
    told = [replace(record, patient_id=found.get(record.image_id, record.patient_id)) for record in records]
    return told, len(set(found.values()))


def may_be_dicom(name: str) -> bool:
    """Returns whether a DICOM file may have this name.

    Many DICOM files have no suffix; digits after a dot belong to a UID, and are not a suffix.

    Args:
        name: The name of the file, without folders.

    Returns:
        True for names with a DICOM suffix or without a suffix, except hidden files and DICOMDIR.
    """
    suffix = name.rpartition(".")[2]
    without = suffix == name or suffix.isdigit()
    return (without or name.lower().endswith(DICOM_SUFFIXES)) and not name.startswith(".") and name != "DICOMDIR"


def _is_image(item: Item) -> bool:
    return may_be_dicom(item.entry.path.rpartition("/")[2]) and item.parsed.role != "mask"


def _groups(tags: dicom.Tags, salt: Salt) -> dict[str, str]:
    return {**tags.groups, **({STUDY_KEY: salt.key("study", tags.study)} if tags.study else {})}


def _patient(tags: dicom.Tags, salt: Salt) -> str:
    """Returns the key of the patient or, without a patient ID, of the study, since a study has only one patient."""
    if tags.patient:
        return salt.key("patient", tags.patient)
    return salt.key("study", tags.study) if tags.study else ""


def _all_tags(images: Sequence[Entry], salt: Salt) -> Iterator[TagsOrError]:
    def read_one(entry: Entry) -> TagsOrError:
        try:
            with redact_paths(salt.key("path", entry.path)):
                return retry(lambda: _tags(entry.place), seconds=PATIENCE_SECONDS)
        except BadFileError as error:
            return error

    with ThreadPoolExecutor(_READERS) as pool:
        yield from ticks(pool.map(read_one, images), total=len(images), description="Reading tags")


def _tags(place: Location) -> dicom.Tags | None:
    try:
        with translate_errors(place), place.filesystem.open_input_file(place.path) as file:
            head = file.read(_HEAD_BYTES)
            if not dicom.is_dicom(head):
                if not place.name.lower().endswith(DICOM_SUFFIXES):
                    return None
                raise BadFileError("unreadable", f"expected DICOM, found {file.size()} bytes that are none")
            check_bytes(file.size())
            with suppress(BadFileError):
                # Tags are stored in ascending order, and that of the study is the last of those that are needed. If the
                # head contains it, the rest of the file contains none of them.
                if (tags := dicom.read_tags(io.BytesIO(head))).study:
                    return tags
            return dicom.read_tags(io.BytesIO(head + file.read()))
    except OSError as error:
        if not (why := fault_of_file(error)):
            raise
        raise BadFileError("unreadable", why) from None


def _begins_as_dicom(entry: Entry) -> bool:
    try:
        with translate_errors(entry.place), entry.place.filesystem.open_input_file(entry.place.path) as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return False


DICOM = Layout("dicom", EXPECTS, recognise, read)
