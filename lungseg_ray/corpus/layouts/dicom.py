"""The layout `dicom`: a tree of DICOM files as an archive exports it; whose they are stands in their tags."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import dicom
from lungseg_ray.corpus.formats import check_bytes
from lungseg_ray.corpus.layouts.listing import (
    DICOM_SUFFIXES,
    SUFFIXES,
    Entry,
    Layout,
    Listing,
    Tree,
    make_record,
    without_suffix,
)
from lungseg_ray.corpus.privacy import Salt, find_salt
from lungseg_ray.corpus.record import SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.storage import explained, locate

EXPECTS = "DICOM files in any folders, and the mask of images/a/b.dcm, or of a/b.dcm, as masks/a/b.png"
_MASKS, _IMAGES = "masks/", "images/"
_READERS = 16
"""Files whose tags are read at the same time."""
_HEAD_BYTES = 1 << 17
"""Of a file, in which its first tags nearly always stand: one request to a bucket."""

Tags = dicom.Tags | BadFileError | None
"""What a file says, why it cannot be read, or None where it is no DICOM file and does not claim to be one."""


def recognise(tree: Tree) -> str:
    """What speaks for this layout."""
    found = any(entry.path.lower().endswith(DICOM_SUFFIXES) for entry in tree.files if _is_image(entry))
    return f"found files named {' or '.join(DICOM_SUFFIXES)}" if found else ""


def read(tree: Tree, settings: CorpusSettings) -> Listing:
    """Lists a tree of DICOM files, after reading the tags of each; an image without a mask is unlabelled.

    Patient and study are keys of what the tags say, and `image_id` is a key of the path, since paths often hold UIDs
    or names: nothing else of them may be written anywhere.

    Raises:
        UserError: if there is no DICOM file, or no salt for the keys.
    """
    salt = find_salt()
    images = [entry for entry in tree.files if _is_image(entry)]
    masks = {
        _stem(entry): entry
        for entry in tree.files
        if entry.path.startswith(_MASKS) and entry.path.lower().endswith(SUFFIXES)
    }
    found = Listing([], [], "dicom")
    ignored = 0
    for entry, tags in zip(images, _all_tags(images), strict=True):
        image_id = salt.key("path", entry.path)
        mask = masks.pop(_stem(entry), None)
        if tags is None:
            ignored += 1
        elif isinstance(tags, BadFileError):
            found.set_aside.append(SetAside(image_id, image_id, tags.reason, tags.detail))
        else:
            record = make_record(image_id, entry, [mask] if mask else [], settings, _groups(tags, salt))
            patient = salt.key("patient", tags.patient) if tags.patient else image_id
            record = replace(record, patient_id=patient, private=True)
            (found.records if mask else found.unlabelled).append(record)
    if not (found.records or found.unlabelled or found.set_aside):
        raise UserError(f"{tree.root}: the layout dicom expects {EXPECTS}; found no DICOM file.")
    for entry in masks.values():
        image_id = salt.key("path", entry.path)
        found.set_aside.append(SetAside(image_id, image_id, "no_image", "expected its image, found the mask alone"))
    for unusable in tree.unusable():
        image_id = salt.key("path", unusable.uri)
        found.set_aside.append(replace(unusable, image_id=image_id, uri=image_id))
    for group in (found.records, found.unlabelled, found.set_aside):
        group.sort(key=lambda one: one.image_id)
    return replace(found, ignored=ignored)


def find(root: str, key: str) -> str:
    """The path that stands behind an `image_id` of this layout.

    Raises:
        UserError: if the folder cannot be listed, if there is no salt, or if no file has this key.
    """
    salt, tree = find_salt(), Tree.of(locate(root))
    for entry in tree.files:
        if salt.key("path", entry.path) == key:
            return entry.place.uri
    for unusable in tree.unusable():
        if salt.key("path", unusable.uri) == key:
            return unusable.uri
    raise UserError(f"{root}: no file has the key {key} with the salt of {salt.source}. Was it made with another salt?")


def _is_image(entry: Entry) -> bool:
    """Whether its name is that of a DICOM file; in archives, many have no suffix."""
    name = entry.path.rsplit("/", 1)[-1]
    named = name.lower().endswith(DICOM_SUFFIXES) or "." not in name
    return named and not name.startswith(".") and not entry.path.startswith(_MASKS)


def _stem(entry: Entry) -> str:
    """What an image and its mask have in common. UIDs have dots, which begin no suffix."""
    path = entry.path.removeprefix(_MASKS).removeprefix(_IMAGES)
    return without_suffix(path) if path.lower().endswith(SUFFIXES) else path


def _groups(tags: dicom.Tags, salt: Salt) -> dict[str, str]:
    return {**tags.groups, **({"study": salt.key("study", tags.study)} if tags.study else {})}


def _all_tags(images: list[Entry]) -> Iterator[Tags]:
    with ThreadPoolExecutor(_READERS) as pool:
        yield from ticks(pool.map(_tags, images), total=len(images), description="Reading tags")


def _tags(entry: Entry) -> Tags:
    place = entry.place
    try:
        with explained(place), place.filesystem.open_input_file(place.path) as file:
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
    except BadFileError as error:
        return error
    except (FileNotFoundError, PermissionError) as error:
        return BadFileError("unreadable", f"the file cannot be opened: {error.strerror or type(error).__name__}")


DICOM = Layout("dicom", EXPECTS, recognise, read)
