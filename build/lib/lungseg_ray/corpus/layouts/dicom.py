"""The layout `dicom`: a tree of DICOM files as an archive exports it, with the patient of each image in its tags."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import dicom
from lungseg_ray.corpus.layouts.listing import Layout, Listing, make_record
from lungseg_ray.corpus.layouts.tree import DICOM_SUFFIXES, SUFFIXES, Entry, FileTree
from lungseg_ray.corpus.picture import check_bytes
from lungseg_ray.corpus.privacy import Salt, find_salt
from lungseg_ray.corpus.read import fault_of_file, redact_paths
from lungseg_ray.corpus.record import STUDY_KEY, SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry, translate_errors
from lungseg_ray.text import without_suffix

EXPECTS = "DICOM files in any folders, and the mask of images/a/b.dcm, or of a/b.dcm, as masks/a/b.png"
_MASKS, _IMAGES = "masks/", "images/"
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
    images = [entry for entry in tree.files if _is_image(entry)]
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
    images = [entry for entry in tree.files if _is_image(entry)]
    masks = [entry for entry in tree.files if entry.path.startswith(_MASKS) and entry.path.lower().endswith(SUFFIXES)]
    found = Listing([], [], "dicom")
    good: dict[str, list[tuple[Entry, dicom.Tags]]] = defaultdict(list)
    ignored = len(tree.files) - len(images) - len(masks)

    def set_aside(entry: Entry, reason: str, detail: str) -> None:
        image_id = salt.key("path", entry.path)
        found.set_aside.append(SetAside(image_id, image_id, reason, detail))

    for entry, tags in zip(images, _all_tags(images, salt), strict=True):
        if tags is None:
            ignored += 1
        elif isinstance(tags, BadFileError):
            set_aside(entry, tags.reason, tags.detail)
        else:
            good[_stem(entry)].append((entry, tags))
    drawn: dict[str, list[Entry]] = defaultdict(list)
    for entry in masks:
        drawn[_stem(entry)].append(entry)
    for stem, pairs in good.items():
        parts = drawn.pop(stem, [])
        if len(pairs) > 1 or len(parts) > 1:
            detail = f"expected one image and one mask of a name, found {len(pairs)} and {len(parts)}"
            for entry, _ in pairs:
                set_aside(entry, "ambiguous", detail)
            continue
        (entry, tags), image_id = pairs[0], salt.key("path", pairs[0][0].path)
        record = make_record(image_id, entry, parts, settings, _groups(tags, salt))
        record = replace(record, patient_id=_patient(tags, salt) or image_id, private=True)
        (found.records if parts else found.unlabelled).append(record)
    if not (found.records or found.unlabelled or found.set_aside):
        raise UserError(f"{tree.root}: the layout dicom expects {EXPECTS}; found no DICOM file.")
    for parts in drawn.values():
        for entry in parts:
            set_aside(entry, "no_image", "expected its image, found the mask alone")
    for unusable in tree.unusable():
        image_id = salt.key("path", unusable.uri)
        found.set_aside.append(replace(unusable, image_id=image_id, uri=image_id))
    for group in (found.records, found.unlabelled, found.set_aside):
        group.sort(key=lambda one: one.image_id)
    return replace(found, ignored=ignored)


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


def _is_image(entry: Entry) -> bool:
    return may_be_dicom(entry.path.rpartition("/")[2]) and not entry.path.startswith(_MASKS)


def _stem(entry: Entry) -> str:
    """Returns the part of the path that an image and its mask have in common."""
    path = entry.path.removeprefix(_MASKS).removeprefix(_IMAGES)
    return without_suffix(path) if path.lower().endswith(SUFFIXES) else path


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
