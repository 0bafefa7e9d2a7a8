"""The layout `dicom`: a tree of DICOM files as an archive exports it; whose they are stands in their tags."""

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
"""Files whose tags are read at the same time."""
_HEAD_BYTES = 1 << 17
"""Of a file, in which its first tags nearly always stand: one request to a bucket."""
_PROBED = 16
"""Files without a suffix that are opened to recognise the layout."""

TagsOrError = dicom.Tags | BadFileError | None
"""What a file says, why it cannot be read, or None where it is no DICOM file and does not claim to be one."""


def recognise(tree: FileTree) -> str:
    """What speaks for this layout: names, and the beginnings of a few files that have no suffix."""
    images = [entry for entry in tree.files if _is_image(entry)]
    if any(entry.path.lower().endswith(DICOM_SUFFIXES) for entry in images):
        return f"found files named {' or '.join(DICOM_SUFFIXES)}"
    return "found DICOM files without a suffix" if any(map(_begins_as_dicom, islice(images, _PROBED))) else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists a tree of DICOM files, after reading the tags of each; an image without a mask is unlabelled.

    Patient and study are keys of what the tags say, and `image_id` is a key of the path, since paths often hold UIDs
    or names: nothing else of them may be written anywhere.

    Raises:
        UserError: if there is no DICOM file, or no salt for the keys.
        OSError: if the files cannot be read from where they lie.
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
    """The path that stands behind an `image_id` of this layout.

    Raises:
        UserError: if the folder cannot be listed, if there is no salt, or if no file has this key.
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
    """Whether a file's name is one that DICOM files have: many have no suffix, and the dots of a UID begin none."""
    suffix = name.rpartition(".")[2]
    without = suffix == name or suffix.isdigit()
    return (without or name.lower().endswith(DICOM_SUFFIXES)) and not name.startswith(".") and name != "DICOMDIR"


def _is_image(entry: Entry) -> bool:
    return may_be_dicom(entry.path.rpartition("/")[2]) and not entry.path.startswith(_MASKS)


def _stem(entry: Entry) -> str:
    """What an image and its mask have in common."""
    path = entry.path.removeprefix(_MASKS).removeprefix(_IMAGES)
    return without_suffix(path) if path.lower().endswith(SUFFIXES) else path


def _groups(tags: dicom.Tags, salt: Salt) -> dict[str, str]:
    return {**tags.groups, **({STUDY_KEY: salt.key("study", tags.study)} if tags.study else {})}


def _patient(tags: dicom.Tags, salt: Salt) -> str:
    """A study is of one patient, so that it may stand for one who has no id."""
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
                # The study comes after the patient: where it is known, nothing that is wanted was beyond the head.
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
