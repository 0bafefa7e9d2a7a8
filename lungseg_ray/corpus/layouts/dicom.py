"""The layout `dicom`: a tree of DICOM files as an archive exports it, with the patient of each image in its tags."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import dicom
from lungseg_ray.corpus.layouts.annotated import Annotations, find_annotations
from lungseg_ray.corpus.layouts.index import IndexEntry, Indexes, read_indexes
from lungseg_ray.corpus.layouts.kinds import (
    choose_kinds,
    require_single,
    same_part,
    structure_of,
    used_parts,
    with_structures,
)
from lungseg_ray.corpus.layouts.listing import Layout, Listing, make_record
from lungseg_ray.corpus.layouts.matching import Item, Part, match
from lungseg_ray.corpus.layouts.patients import AUTO, NONE
from lungseg_ray.corpus.layouts.roles import Roles
from lungseg_ray.corpus.layouts.sorting import has_mask_word, sort_files
from lungseg_ray.corpus.layouts.tree import DICOM_SUFFIXES, SUFFIXES, Entry, FileTree
from lungseg_ray.corpus.picture import check_bytes
from lungseg_ray.corpus.privacy import Salt, find_salt
from lungseg_ray.corpus.read import fault_of_file, redact_paths
from lungseg_ray.corpus.record import STUDY_KEY, MaskSource, Record, SetAside
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry, translate_errors
from lungseg_ray.text import counted, shown

EXPECTS = "DICOM files in any folders, with DICOM segmentations, or the mask of images/a/b.dcm as masks/a/b.png"
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
    items, masks = _masks(tree, items, settings)
    annotations = find_annotations(tree, settings) if not masks else Annotations()
    found = _sort(items, salt)
    listing = Listing([], found.unreadable, "dicom", warnings=annotations.doubts)

    def set_aside(entry: Entry, reason: str, detail: str) -> None:
        image_id = salt.key("path", entry.path)
        listing.set_aside.append(SetAside(image_id, image_id, reason, detail))

    referring = _referring(found.images, found.segmentations)
    used = {one.item.entry.path for several in referring.values() for one in several}
    by_name = {one.entry.path: one for one in [*masks, *(one.item for one in found.segmentations)]}
    named = [item for path, item in by_name.items() if path not in used]
    matches = match([one.item for one in found.images.values()], [*named, *annotations.items])
    claimed = {path: mask for mask, paths in matches.ambiguous.items() for path in paths}
    used_masks = used_parts(matches.parts, choose_kinds(tree.name, matches, settings))
    require_single(tree.name, matches, private=True)
    tables = _tables(tree, settings, found, salt, annotations.used)
    for path, image in found.images.items():
        named_parts, segments = used_masks[path], referring.get(path, [])
        names = [name for one in segments for name in one.tags.structures]
        several = path in claimed or same_part(named_parts) or (named_parts and segments)
        if several or len(set(names)) < len(names):
            images = len(matches.ambiguous[claimed[path]]) if path in claimed else 1
            detail = f"expected one image and one mask of a name, found {images} and {len(named_parts) + len(segments)}"
            set_aside(image.item.entry, "ambiguous", detail)
            continue
        record = _record(image, named_parts, [one.item for one in segments], settings, salt)
        record = _told(record, tables.entries.get(record.image_id), settings, salt)
        (listing.records if record.masks else listing.unlabelled).append(record)
    if not (listing.records or listing.unlabelled or listing.set_aside):
        raise UserError(f"{tree.name}: the layout dicom expects {EXPECTS}; found no DICOM file.")
    for lonely in [] if annotations.items else matches.lonely:
        set_aside(lonely.entry, "no_image", "expected its image, found the mask alone")
    for unusable in tree.unusable():
        image_id = salt.key("path", unusable.uri)
        listing.set_aside.append(replace(unusable, image_id=image_id, uri=image_id))
    for group in (listing.records, listing.unlabelled, listing.set_aside):
        group.sort(key=lambda one: one.image_id)
    structures = Counter(name for one in found.segmentations for name in one.tags.structures)
    said = ", ".join(f"{shown(name)} ({count})" for name, count in structures.most_common(6))
    lines = [f"annotations: {counted(len(found.segmentations), 'DICOM segmentation')}: {said}"] if structures else []
    known = found.paths | {item.entry.path for item in masks} | annotations.used
    listing, by_name_structures = with_structures(listing, settings)
    if tables.entries:
        lines.append(f"tables: {counted(len(tables.entries), 'image')} in tables or lists, for splits and patients")
    return replace(
        listing,
        recognition=[*annotations.said, *lines],
        ignored=sum(entry.path not in known for entry in tree.files),
        keep_empty=annotations.marks_nothing,
        structures=list(structures) if len(structures) > 1 else annotations.structures or by_name_structures,
    )


@dataclass(frozen=True)
class _Tagged:
    """A DICOM file with its tags."""

    item: Item
    tags: dicom.Tags


@dataclass
class _Sorted:
    """The DICOM files of a tree, sorted by what their tags say.

    Attributes:
        images: The images, by path.
        segmentations: The segmentations.
        unreadable: The images whose tags cannot be read.
        paths: The paths of all of them.
    """

    images: dict[str, _Tagged] = field(default_factory=dict)
    segmentations: list[_Tagged] = field(default_factory=list)
    unreadable: list[SetAside] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


def _sort(items: Sequence[Item], salt: Salt) -> _Sorted:
    """Reads the tags of all files that may be DICOM. Those in folders of masks count only if they are segmentations."""
    found = _Sorted()
    files = [item for item in items if may_be_dicom(item.entry.path.rpartition("/")[2])]
    for item, tags in zip(files, _all_tags([item.entry for item in files], salt), strict=True):
        path = item.entry.path
        if tags is not None:
            found.paths.add(path)
        if isinstance(tags, dicom.Tags) and tags.marks is not None:
            found.segmentations.append(_Tagged(item, tags))
        elif item.parsed.role != "mask" and isinstance(tags, dicom.Tags):
            found.images[path] = _Tagged(item, tags)
        elif item.parsed.role != "mask" and isinstance(tags, BadFileError):
            image_id = salt.key("path", path)
            found.unreadable.append(SetAside(image_id, image_id, tags.reason, tags.detail))
    return found


def _referring(images: Mapping[str, _Tagged], segmentations: Sequence[_Tagged]) -> dict[str, list[_Tagged]]:
    """Returns the segmentations that refer to each image, by the path of the image."""
    by_instance: dict[str, list[str]] = defaultdict(list)
    for path, image in images.items():
        by_instance[image.tags.instance].append(path)
    found: dict[str, list[_Tagged]] = defaultdict(list)
    for item, tags in ((one.item, one.tags) for one in segmentations):
        for instance in dict.fromkeys(tags.marks or ()):
            source = MaskSource(item.entry.place.uri, entry=f"segmentation:{instance}")
            for path in by_instance.get(instance, ()):
                found[path].append(_Tagged(replace(item, source=source), tags))
    return found


def _masks(tree: FileTree, items: Sequence[Item], settings: CorpusSettings) -> tuple[list[Item], list[Item]]:
    """Returns all files, and those that are masks by their folders, by their names, or as the user says.

    Raises:
        UserError: If a setting is given that this layout does not use.
    """
    if settings.images:
        raise UserError("corpus.images is not used by the layout dicom: DICOM files are images unless they are masks.")
    told = {item.entry.path: item for item in sort_files(tree, settings).masks} if settings.masks else {}
    as_masks = {path: replace(item, parsed=replace(item.parsed, role="mask")) for path, item in told.items()}
    items = [as_masks.get(item.entry.path, item) for item in items]
    masks = [
        item
        for item in items
        if item.name.endswith(SUFFIXES)
        and (item.parsed.role == "mask" or (not item.name.endswith(DICOM_SUFFIXES) and has_mask_word(item)))
    ]
    return items, masks


def _tables(tree: FileTree, settings: CorpusSettings, found: _Sorted, salt: Salt, others: Collection[str]) -> Indexes:
    """Reads the tables and lists that name images.

    Raises:
        UserError: If corpus.patients is a pattern, or a table is wrong.
    """
    paths = {salt.key("path", path): path for path in found.images}
    tables = read_indexes(tree, settings, paths, others)
    if settings.patients not in (AUTO, NONE) and not tables.column:
        raise UserError(
            f"corpus.patients: {settings.patients!r} is no column of a table here, and the layout dicom takes patients "
            "from tags and tables, not from paths."
        )
    return tables


def _told(record: Record, entry: IndexEntry | None, settings: CorpusSettings, salt: Salt) -> Record:
    """Adds to a record what tables say of it. Tags say whose an image is, unless a column is named."""
    if settings.patients == NONE:
        record = replace(record, patient_id="")
    if entry is None:
        return record
    whose = salt.key("patient", entry.patient) if entry.patient and settings.patients != NONE else ""
    patient = record.patient_id if settings.patients == AUTO and record.patient_id else whose or record.patient_id
    return replace(record, patient_id=patient, split=entry.split or record.split)


def _record(
    image: _Tagged, parts: Sequence[Part], segments: Sequence[Item], settings: CorpusSettings, salt: Salt
) -> Record:
    entry, tags = image.item.entry, image.tags
    groups, patient = _groups(tags, salt), _patient(tags, salt)
    files = [*(part.item.entry for part in parts), *(item.entry for item in segments)]
    record = make_record(salt.key("path", entry.path), entry, files, settings, groups, patient)
    sources = [
        replace(part.item.source or MaskSource(part.item.entry.place.uri), structure=structure_of(part))
        for part in sorted(parts, key=lambda part: part.item.entry.path)
    ]
    sources += [item.source for item in segments if item.source]
    return replace(record, masks=tuple(sources), split=image.item.parsed.split, private=True)


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
        records: The records. One with a `patient_id` keeps it.

    Returns:
        The records, with keys of patients, and the number of these patients.

    Raises:
        UserError: If there is no salt for the keys.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    free = [record for record in records if not record.patient_id and record.image_uri.lower().endswith(DICOM_SUFFIXES)]
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
                if (tags := dicom.read_tags(io.BytesIO(head))).study and tags.marks is None:
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
