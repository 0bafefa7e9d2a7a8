"""The layout `pairs`: images and masks in folders of any usual names, matched by their own names.

What the folders and names say is found out by `roles`, `matching`, `patients` and `index`; this module decides what of
it is used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import index
from lungseg_ray.corpus.layouts.annotated import Annotations, find_annotations
from lungseg_ray.corpus.layouts.dicom import tag_patients
from lungseg_ray.corpus.layouts.foreign import foreign_annotations
from lungseg_ray.corpus.layouts.kinds import (
    Kind,
    choose_kinds,
    require_single,
    same_part,
    structure_of,
    used_parts,
    with_structures,
)
from lungseg_ray.corpus.layouts.labelmaps import find_value_names
from lungseg_ray.corpus.layouts.listing import Layout, Listing, NoLayoutError, make_record
from lungseg_ray.corpus.layouts.matching import Item, Matches, Part, bare, families, match
from lungseg_ray.corpus.layouts.patients import AUTO, name_patients
from lungseg_ray.corpus.layouts.pixels import tell_apart
from lungseg_ray.corpus.layouts.roles import Roles, normal, read_words
from lungseg_ray.corpus.layouts.sorting import Sorted, readable, sort_files
from lungseg_ray.corpus.layouts.table import TABLES, read_table
from lungseg_ray.corpus.layouts.tree import DICOM_SUFFIXES, SUFFIXES, Entry, FileTree, above, state_of
from lungseg_ray.corpus.record import MaskSource, Record, SetAside
from lungseg_ray.corpus.structures import is_other
from lungseg_ray.errors import UserError
from lungseg_ray.text import counted, named, shown, without_suffix

EXPECTS = "images and masks in folders such as images/ and masks/ (or x.png and x_mask.png beside it), named alike"
_MOST_VALUES = 12
"""Folders with more different names than this are not reported as a group."""
_MOST_UNUSED = 2
_MOST_TABLE_BYTES = 1 << 26
_FEWEST_IN_A_GROUP = 3
"""Nor are folders that hold fewer images than this on average."""


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout, a folder of images and one of masks; empty if there is none.

    Folders whose images are all DICOM belong to the layout `dicom`.
    """
    by_folder: dict[str, bool] = defaultdict(bool)
    for entry in readable(tree):
        by_folder[entry.path.rpartition("/")[0]] |= not entry.path.lower().endswith(DICOM_SUFFIXES)
    roles = Roles(by_folder)
    parsed = {folder: roles.parse(folder) for folder in by_folder}
    # "CXR_png" and "segmentation" are also in the names of public sets.
    images, masks = (
        {one.folder for one in parsed.values() if one.role == role and not _is_weak(one.folder)}
        for role in ("image", "mask")
    )
    plain = any(by_folder[folder] for folder, one in parsed.items() if one.role == "image")
    return f"found {_folders(images)} and {_folders(masks)}" if images and masks and plain else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Matches images and masks. The id of an image is its path without suffix, and without the folder of images.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus.

    Returns:
        The listing. Images without a mask are set aside, unless a whole folder has none: those are unlabelled.

    Raises:
        UserError: If images and masks cannot be told apart or do not match, if there are masks of several kinds, or if
            a table is wrong.
        OSError: If a table cannot be read from a disk, or from a bucket (`StorageError`).
    """
    found, annotations = sort_files(tree, settings), Annotations()
    if not found.masks or not found.images:
        annotations = find_annotations(tree, settings)
        if annotations.items:
            found = Sorted([*found.images, *found.masks], annotations.items, found.others, by_name=found.by_name)
        elif (apart := tell_apart([*found.images, *found.masks, *found.others])) and not (
            settings.images or settings.masks
        ):
            found = Sorted(*apart, by_pixels=True)
    matches = match(found.images, found.masks)
    if not any(matches.parts.values()) and not matches.ambiguous:
        _refuse(tree, found)
    kinds = choose_kinds(tree.name, matches, settings)
    require_single(tree.name, matches)
    ids = _ids(found.images, matches.lonely)
    listing = _list(found, matches, ids, settings, kinds)
    if annotations.items:
        listing = _unannotated(listing, found, annotations, ids)
    unusable = tree.unusable(_roots(found))
    paths = {ids[item.entry.path]: item.entry.path for item in found.images}
    tables = index.read_indexes(tree, settings, paths, annotations.used)
    _require_same_pairs(tree, listing.records, tables)
    listing = index.apply(listing, tables)
    listing, structures = with_structures(listing, settings)
    everyone = [*listing.records, *listing.unlabelled]
    everyone, tagged = tag_patients(everyone) if settings.patients == AUTO else (everyone, 0)
    everyone, patients = name_patients(everyone, paths, settings.patients if not tables.column else AUTO)
    value_names, labels_said = find_value_names(tree, settings)
    recognition = [
        *([] if annotations.items else [f"images and masks: {_describe(found, matches, kinds)}"]),
        *annotations.said,
        *labels_said,
        *tables.said,
        *([f"patients: {counted(tagged, 'patient')} from the tags of the DICOM files"] if tagged else []),
        *(f"patients: {said}" for said in patients.said),
    ]
    return replace(
        listing,
        records=everyone[: len(listing.records)],
        unlabelled=everyone[len(listing.records) :],
        set_aside=sorted([*listing.set_aside, *unusable], key=lambda one: one.image_id),
        ignored=_count_unread(tree, found),
        recognition=recognition,
        keep_empty=annotations.marks_nothing,
        value_names=value_names,
        structures=annotations.structures or structures,
        warnings=[
            *_unused(found),
            *_unmatched(found, matches),
            *_other_structure(matches, settings),
            *annotations.doubts,
            *tables.doubts,
            *patients.doubts,
        ],
    )


def _other_structure(matches: Matches, settings: CorpusSettings) -> list[str]:
    """Returns a sentence for the user if all masks are named for something else than the class."""
    names = {" ".join(part.kind) for parts in matches.parts.values() for part in parts}
    if len(names) != 1 or settings.classes > 2 or not is_other(name := names.pop(), settings.class_names[0]):
        return []
    return [
        f"The masks are named {shown(name)}, and count as {settings.class_names[0]}. If they mark something else, name "
        f"it: --corpus.class_names {shown(name)!r}"
    ]


def _require_same_pairs(tree: FileTree, records: Sequence[Record], tables: index.Indexes) -> None:
    """Raises a `UserError` if a table pairs images with other masks than their names do."""
    for record in records:
        mask, table = tables.masks.get(record.image_id, ("", ""))
        names = {bare(normal(source.uri.rpartition("/")[2])) for source in record.masks if not source.entry}
        if mask and names and mask not in names:
            raise UserError(
                f"{tree.name}: {shown(table)} gives {shown(record.image_id)} the mask {shown(mask)}, and by their "
                f"names it has {named(sorted(names))}. To pair them by the table, set corpus.root to it; else remove "
                "the table."
            )


def _unused(found: Sorted) -> list[str]:
    """Returns a sentence for the user if files that may be images lie in folders that say nothing, beside others."""
    if len(found.others) <= max(_MOST_UNUSED, 0.01 * len(found.images)):
        return []
    folders = Counter(item.entry.path.rpartition("/")[0] or "the folder itself" for item in found.others)
    where = named([f"{folder}/" for folder, _ in folders.most_common()])
    return [
        f"{counted(len(found.others), 'file')} that may be images are not used, in {where}, since other folders are "
        "named for images and masks. Name theirs, too: --corpus.images and --corpus.masks, or leave them out of "
        "corpus.root."
    ]


def _unmatched(found: Sorted, matches: Matches) -> list[str]:
    """Returns a sentence for the user if whole folders of masks have no image, beside others that have."""
    lonely = Counter(mask.parsed.folder for mask in matches.lonely)
    all_masks = Counter(mask.parsed.folder for mask in found.masks)
    whole = {folder for folder, count in lonely.items() if folder and count == all_masks[folder]}
    used = {folder for folder in all_masks.keys() - whole if folder}
    if not whole or not used:
        return []
    return [
        f"No mask in {_folders(whole)} has the name of an image; those of {_folders(used)} are used. If the first are "
        "meant, name them as their images are, and name their folder: --corpus.masks"
    ]


def _is_weak(folder: str) -> bool:
    return read_words(folder.rpartition("/")[2]).weak


def _folders(names: set[str]) -> str:
    few = sorted(names, key=lambda name: (name.count("/"), name))
    return " and ".join(f"{shown(name)}/" for name in few[:2]) + (f" and {len(few) - 2} more" if len(few) > 2 else "")


def _ids(images: Sequence[Item], others: Sequence[Item] = ()) -> dict[str, str]:
    """Returns the id of each image, by its path: the folders without those of roles, and the name without suffix.

    Folders that all images have in common are left out. Names keep their capitals. `others` are masks without an image,
    which get the id that their image would have.
    """
    rests = [item.parsed.rest for item in images]
    shared = 0
    while rests and all(len(rest) > shared and rest[shared] == rests[0][shared] for rest in rests):
        shared += 1
    # A corpus of one folder for each image has no common folder, and one of one image has nothing else.
    return {
        item.entry.path: "/".join([*item.parsed.rest[shared:], _stem(item.entry.path.rpartition("/")[2])])
        for item in (*images, *others)
    }


def _stem(name: str) -> str:
    """Returns the name of a file without its suffix, which may have two parts (`.nii.gz`)."""
    double = next((end for end in SUFFIXES if end.count(".") > 1 and name.lower().endswith(end)), "")
    return name[: -len(double)] if double and len(name) > len(double) else without_suffix(name)


def _list(
    found: Sorted,
    matches: Matches,
    ids: Mapping[str, str],
    settings: CorpusSettings,
    kinds: set[Kind],
) -> Listing:
    by_id: dict[str, list[Item]] = defaultdict(list)
    for item in found.images:
        by_id[ids[item.entry.path]].append(item)
    groups = _groups(found.images)
    used = used_parts(matches.parts, kinds)
    sided = [path for path, parts in used.items() if {part.side for part in parts} >= {"left", "right"}]
    both = len(sided) > sum(map(bool, used.values())) / 2
    labelled_folders = {(item.parsed.folder, item.parsed.split) for item in found.images if used[item.entry.path]}
    ambiguous = {path: mask for mask, paths in matches.ambiguous.items() for path in paths}
    listing = Listing([], [], "pairs")
    masks_in = _folders({item.parsed.folder for item in found.masks if item.parsed.folder}) or "the same folder"
    for image_id, items in by_id.items():
        item = items[0]
        path, uri = item.entry.path, item.entry.place.uri
        parts = used[path]
        same = same_part(parts)
        if len(items) > 1 or same or path in ambiguous:
            others = [other.entry.path for other in items] if len(items) > 1 else same
            others = others or [ambiguous[path], *matches.ambiguous[ambiguous[path]]]
            detail = f"expected one file of this name, found {named(others)}"
            listing.set_aside.append(SetAside(image_id, uri, "ambiguous", detail))
        elif both and parts and {part.side for part in parts} < {"left", "right"}:
            there = named([part.item.entry.path for part in parts])
            detail = f"expected the masks of both sides, found {there} alone"
            listing.set_aside.append(SetAside(image_id, uri, "no_mask", detail))
        elif parts or (item.parsed.folder, item.parsed.split) not in labelled_folders:
            record = _record(item, image_id, parts, settings, groups[path])
            (listing.records if parts else listing.unlabelled).append(record)
        else:
            detail = f"expected a mask of {shown(path)} in {masks_in}, found none"
            listing.set_aside.append(SetAside(image_id, uri, "no_mask", detail))
    images_in = _folders({item.parsed.folder for item in found.images if item.parsed.folder}) or "the same folder"
    for item in matches.lonely:
        detail = f"expected an image of {shown(item.entry.path)} in {images_in}, found none"
        listing.set_aside.append(SetAside(ids[item.entry.path], item.entry.place.uri, "no_image", detail))
    for group in (listing.records, listing.unlabelled):
        group.sort(key=lambda record: record.image_id)
    return listing


def _unannotated(listing: Listing, found: Sorted, annotations: Annotations, ids: Mapping[str, str]) -> Listing:
    """Takes images that a collection leaves out for unlabelled, and annotations of absent images for no fault."""
    if not any(item.source for item in found.masks):
        return listing
    without = {one.image_id for one in listing.set_aside if one.reason == "no_mask"}
    absent = {ids[item.entry.path] for item in found.masks if item.entry.path in ids}
    unlabelled = [
        Record(ids[item.entry.path], item.entry.place.uri, (), "", state=state_of([item.entry]))
        for item in found.images
        if ids[item.entry.path] in without
    ]
    aside = [
        one
        for one in listing.set_aside
        if one.reason not in ("no_mask", "no_image") or (one.reason == "no_image" and one.image_id not in absent)
    ]
    missing = len(absent & {one.image_id for one in listing.set_aside if one.reason == "no_image"})
    if missing:
        annotations.said.append(f"annotations: {counted(missing, 'annotated image')} not among the files")
    return replace(listing, set_aside=aside, unlabelled=[*listing.unlabelled, *unlabelled])


def _record(
    item: Item, image_id: str, parts: Sequence[Part], settings: CorpusSettings, groups: Mapping[str, str]
) -> Record:
    parts = sorted(parts, key=lambda part: part.item.entry.path)
    record = make_record(image_id, item.entry, [part.item.entry for part in parts], settings, groups)
    sources = tuple(
        replace(
            part.item.source or MaskSource(part.item.entry.place.uri),
            structure=structure_of(part),
        )
        for part in parts
    )
    splits = (item.parsed.split, *(part.item.parsed.split for part in parts))
    return replace(record, masks=sources, split=next((split for split in splits if split), None))


def _groups(images: Sequence[Item]) -> dict[str, dict[str, str]]:
    """Returns the group `folder` of each image by its path, where folders divide the corpus into a few large parts."""
    levels: list[int] = []
    for depth in range(max((len(item.parsed.rest) for item in images), default=0)):
        values = Counter(_at(item, depth) for item in images)
        if len(values) == 1 or all(read_words(value).split for value in values):
            continue
        if len(values) > _MOST_VALUES or len(images) < _FEWEST_IN_A_GROUP * len(values):
            # These are the folders of patients or studies, and so are those in them.
            break
        if levels and len({(_at(item, levels[-1]), _at(item, depth)) for item in images}) == len(values):
            # A folder in a folder of its own says nothing more.
            continue
        levels.append(depth)
    names = {depth: "folder" if number == 0 else f"folder_{number + 1}" for number, depth in enumerate(levels)}
    return {
        item.entry.path: {name: value for depth, name in names.items() if (value := _at(item, depth))}
        for item in images
    }


def _at(item: Item, depth: int) -> str:
    rest = item.parsed.rest
    return rest[depth] if depth < len(rest) else ""


def _roots(found: Sorted) -> list[str]:
    return sorted({item.parsed.folder for item in [*found.images, *found.masks] if item.parsed.folder})


def _count_unread(tree: FileTree, found: Sorted) -> int:
    """Counts the files in folders of images and masks that are neither."""
    roots = set(_roots(found))
    read = {item.entry.path for item in [*found.images, *found.masks]}
    return sum(entry.path not in read and not roots.isdisjoint(above(entry.path)) for entry in tree.files)


def _describe(found: Sorted, matches: Matches, kinds: set[Kind]) -> str:
    images, masks = ({item.parsed.folder for item in items} - {""} for items in (found.images, found.masks))
    text = "side by side, told apart by their names"
    if images or masks:
        text = f"{_folders(images) or 'elsewhere'}, {_folders(masks) or 'elsewhere'}"
    if found.by_pixels:
        text += ", told apart by their pixels"
    left_out = sorted(" ".join(kind) or "without a word" for kind in families(matches.parts) if kind not in kinds)
    if left_out:
        text += f", without the masks of {named(left_out)}"
    differences = [f"{shown(text)} ({count})" for text, count in matches.differences.most_common(3)]
    if differences:
        text += f"; names differ by {', '.join(differences)}"
    several = sum(len(parts) > 1 for parts in used_parts(matches.parts, kinds).values())
    if several:
        text += f"; {counted(several, 'image')} with several mask files, which are united"
    return text


def _pairing_table(tree: FileTree) -> Entry | None:
    """Returns a table with a column of images and one of masks that names files; None if there is none."""
    for entry in tree.files:
        if not entry.path.lower().endswith(TABLES) or entry.path.count("/") > 1 or entry.size > _MOST_TABLE_BYTES:
            continue
        with suppress(UserError):
            table = read_table(entry.place)
            image, mask = table.find("image", {}), table.find("mask", {})
            if image and mask and any(row[mask].lower().endswith(SUFFIXES) for row in table.rows):
                return entry
    return None


def _refuse(tree: FileTree, found: Sorted) -> None:
    """Raises the `NoLayoutError` of a tree in which no mask has an image."""
    images, masks = ([item.entry.path for item in items] for items in (found.images, found.masks))
    there = f"{tree.name}: found {tree.describe()}"
    if not (masks and images) and (foreign := foreign_annotations(tree)):
        raise NoLayoutError(f"{there}. {foreign}")
    if (table := _pairing_table(tree)) is not None:
        raise NoLayoutError(
            f"{there}. The table {shown(table.path)} names images and masks: --corpus.root {table.place}"
        )
    if not images and not masks:
        raise NoLayoutError(f"{there}; expected images and masks ({', '.join(SUFFIXES)}).")
    if not masks:
        folders = Counter(item.entry.path.rpartition("/")[0] for item in found.others)
        nearest = next((folder for folder, _ in folders.most_common(1) if folder), "")
        last = nearest.rpartition("/")[2]
        if sum(folder.rpartition("/")[2] == last for folder in folders) > 1:
            nearest = f"*/{last}/*"
        given = f"{shown(nearest)!r}, if its files are the masks" if nearest else "FOLDER"
        raise NoLayoutError(
            f"{there}. Of these, {counted(len(images), 'image')} may be used, such as {shown(images[0])}, and nothing "
            f"is named as a mask. Name the folder of masks (--corpus.masks {given}), or a pattern of its files; masks "
            "or annotations that are elsewhere are a second --corpus.root."
        )
    if not images:
        raise NoLayoutError(
            f"{there}. Of these, {counted(len(masks), 'file')} may be masks, such as {shown(masks[0])}, and there are "
            "no images. Name the folder of images (--corpus.images FOLDER); images that are elsewhere are a second "
            "--corpus.root."
        )
    raise NoLayoutError(
        f"{there}. Of these, {counted(len(images), 'image')} such as {shown(images[0])} and "
        f"{counted(len(masks), 'mask')} such as {shown(masks[0])} may be used, and no mask has the name of an image. "
        "Rename them alike, or set corpus.root to a table with a column of images and one of masks."
    )


PAIRS = Layout("pairs", EXPECTS, recognise, read)
