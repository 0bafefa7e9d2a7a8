"""Lists a corpus: pairs each image with its mask and its patient, and finds the files that cannot be used.

| layout | images | masks | patient |
|---|---|---|---|
| `pairs` | images/ | masks/, with the same name as the image | from the index, if there is one |
| `manifest` | column `image_uri` of a table | column `mask_uri` | column `patient_id` |
| `montgomery` | CXR_png/MCUCXR_* | ManualMask/leftMask/ and rightMask/, combined | one patient per image |
| `shenzhen` | CXR_png/CHNCXR_* | mask/*_mask.png, not for all images | one patient per image |
| `jsrt` | JPCLN*.IMG, JPCNN*.IMG | fold1/, fold2/: left lung/ and right lung/, combined | one patient per image |
| `dicom` | DICOM files | masks/ | from the tags |

With `auto`, the layout is recognised by the names of the files, and by the first bytes of DICOM files without a suffix.
The root `phantom` stands for synthetic X-rays.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Literal

from lungseg_ray.config import PHANTOM, CorpusSettings, Roots
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.layouts import manifest
from lungseg_ray.corpus.layouts.annotated import names_runs
from lungseg_ray.corpus.layouts.dicom import DICOM
from lungseg_ray.corpus.layouts.folders import PAIRS
from lungseg_ray.corpus.layouts.jsrt import JSRT
from lungseg_ray.corpus.layouts.labelmaps import require_same_names
from lungseg_ray.corpus.layouts.listing import Layout, Listing, NoLayoutError
from lungseg_ray.corpus.layouts.montgomery import MONTGOMERY
from lungseg_ray.corpus.layouts.roles import read_words
from lungseg_ray.corpus.layouts.shenzhen import SHENZHEN
from lungseg_ray.corpus.layouts.table import TABLES, is_table
from lungseg_ray.corpus.layouts.tree import SUFFIXES, FilesState, FileTree
from lungseg_ray.corpus.probe import look
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.corpus.structures import as_classes, counting, is_background, is_ignored, structure_label
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.storage import Location, locate
from lungseg_ray.text import named, shown

__all__ = ["Listing", "files_state", "is_background", "list_corpus"]


def list_corpus(settings: CorpusSettings, outputs: Sequence[Location] = ()) -> Listing:
    """Lists a corpus in a folder or a bucket, and looks at a few images to find out how all are to be read.

    Args:
        settings: The settings of the corpus, such as its root and its layout.
        outputs: Folders that jobs write. What lies in them is no part of a corpus in whose folder they are.

    Returns:
        The listing, with `because` set if the layout was recognised.

    Raises:
        UserError: If there is no corpus of the layout, if no layout or several layouts fit, if an index or a manifest
            is wrong, or if the layout `dicom` finds no salt.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    with _uncollected():
        return _list_corpus(settings, outputs)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turns the garbage collector off: with a million records, it would look through all of them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _list_corpus(settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    if settings.root == PHANTOM and settings.layout == "auto":
        return Listing(phantom.list_phantoms(settings.phantom), [], PHANTOM, corpus=settings)
    if isinstance(settings.root, Roots):
        listing = _list_roots(settings.root, settings, outputs)
    else:
        listing = _list_root(settings, outputs)
    if listing.keep_empty and "empty_masks" not in settings.model_fields_set:
        settings = settings.model_copy(update={"empty_masks": "keep"})
    listing = _with_patients(listing)
    settings, said = _classes(listing, settings)
    found = look(listing.records, settings, _known_values(listing, settings))
    return replace(
        listing,
        records=found.records,
        recognition=[*listing.recognition, *said, *found.recognition],
        warnings=[*listing.warnings, *_doubts_of_splits(listing.records), *found.warnings],
        glances=found.glances,
        corpus=found.settings,
    )


def _with_patients(listing: Listing) -> Listing:
    """Makes each image of an unknown patient one of a patient of its own, and counts them."""

    def known(records: Iterable[Record]) -> list[Record]:
        return [record if record.patient_id else replace(record, patient_id=record.image_id) for record in records]

    return replace(
        listing,
        records=known(listing.records),
        unlabelled=known(listing.unlabelled),
        unknown_patients=sum(not record.patient_id for record in listing.records),
    )


def _doubts_of_splits(records: Sequence[Record]) -> list[str]:
    """Returns a sentence for the user if the corpus prescribes the split of some images only."""
    free = [record for record in records if record.split is None]
    if not free or len(free) == len(records):
        return []
    folders = list(dict.fromkeys(record.image_id.rpartition("/")[0] for record in free))
    where = f", in {named(folders)}" if any(folders) else ""
    return [
        f"The corpus prescribes the split of {len(records) - len(free)} of {len(records)} images. The others{where} "
        "are assigned by patient. If a folder or a table among them is that of a split, name it train, val or test."
    ]


def _classes(listing: Listing, settings: CorpusSettings) -> tuple[CorpusSettings, list[str]]:
    """Takes the classes, or what counts as the only class, from the structures of a corpus, where the user does not."""
    names = as_classes([*listing.structures, *listing.value_names.values()])
    if settings.unite is False and names and not {"classes", "class_names"} & settings.model_fields_set:
        said = ", ".join(f"{label} {name}" for label, name in enumerate(names, start=1))
        classes = {"classes": len(names) + 1 if len(names) > 1 else 1, "class_names": names}
        return settings.model_copy(update=classes), [f"classes: {said} (corpus.unite, corpus.class_names)"]
    if settings.classes > 2 or settings.unite or settings.structures or not names:
        return settings, []
    (wanted,) = settings.class_names
    counted = counting(names, wanted)
    if not counted:
        raise UserError(
            f"{settings.root}: the masks mark {', '.join(map(shown, names))}, and the class is {wanted}. Name the "
            f"class, such as --corpus.class_names {shown(names[0])!r}, or count all as {wanted}: --corpus.unite true"
        )
    if len(counted) == len(names):
        return settings, []
    rest = ", ".join(shown(name) for name in names if name not in counted)
    said = f"structures: {', '.join(map(shown, counted))}; {rest} count as background (corpus.structures, corpus.unite)"
    return settings.model_copy(update={"structures": counted}), [said]


def _known_values(listing: Listing, settings: CorpusSettings) -> dict[int | str, int | Literal["ignore"]]:
    """Returns the labels of the values or colours that a file of the corpus names, where the user sets none."""
    if settings.mask_values:
        return {}
    labels: dict[int | str, int | Literal["ignore"]] = {}
    try:
        for value, name in listing.value_names.items():
            key = int(value) if value.isdecimal() else value
            labels[key] = "ignore" if is_ignored(name) else structure_label(name, settings)
    except BadFileError as error:
        raise UserError(
            f"{settings.root}: {error.detail}. Set corpus.class_names, or the labels of values with corpus.mask_values."
        ) from None
    return labels


def files_state(settings: CorpusSettings, outputs: Sequence[Location] = ()) -> list[FilesState]:
    """Returns the present state of the files of a corpus, as `Listing.files`, without reading any of them.

    Args:
        settings: The settings of the corpus.
        outputs: Folders that jobs write, as for `list_corpus`.

    Raises:
        UserError: If a root does not exist, or cannot be listed.
        OSError: If a bucket cannot be used.
    """
    if settings.root == PHANTOM:
        return []
    roots = settings.root if isinstance(settings.root, Roots) else [settings.root]
    places = [root for root in roots if isinstance(root, Location) and not is_table(root)]
    return [(FileTree.of_file(root) if root.is_file() else FileTree.whole(root, outputs)).state for root in places]


def _list_root(settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    root = settings.root if isinstance(settings.root, Location) else locate(str(settings.root))
    if settings.layout == "manifest" or (settings.layout == "auto" and is_table(root)):
        return _list_manifest(root, settings)
    tree = FileTree.of(root, outputs)
    return replace(_list_tree(tree, settings), files=[tree.state])


def _list_roots(roots: Roots, settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    """Lists several roots, each as a corpus. Those that are none by themselves, as images and masks, are one together.

    Raises:
        UserError: As for `list_corpus`, also if the roots that are no corpus by themselves are none together.
        OSError: If a root cannot be read.
    """
    listings: dict[str, Listing] = {}
    parts: dict[str, FileTree] = {}
    states: list[FilesState] = []
    for name, root in zip(_names(roots), roots, strict=True):
        own = settings.model_copy(update={"root": root})
        if is_table(root) and not names_runs(root):
            listings[name] = _of_root(_list_manifest(root, own), name)
            continue
        tree = FileTree.of_file(root) if root.is_file() else FileTree.of(root, outputs)
        if not is_table(root):
            states.append(tree.state)
        listing = None
        # Annotations alone may be of many gigabytes, and are read only with their images.
        if any(entry.path.lower().endswith(SUFFIXES) for entry in tree.files):
            with suppress(NoLayoutError):
                listing = _list_tree(tree, own)
        if listing and listing.records:
            listings[name] = _of_root(listing, name)
        else:
            parts[name] = tree
    if parts:
        tree = FileTree.joined(parts) if len(parts) > 1 else next(iter(parts.values()))
        listing = _list_tree(tree, settings)
        if len(parts) > 1:
            said = f"roots: {named(list(parts))} are one corpus, since none of them has images and masks"
            listing = replace(listing, recognition=[said, *listing.recognition])
        together = "+".join(parts)
        listings[together] = _of_root(listing, together) if listings or len(parts) == 1 else listing
    if not settings.mask_values:
        _require_same_names(listings)
    several = list(listings.values())
    return replace(_united(several) if len(several) > 1 else several[0], files=states)


def _require_same_names(listings: Mapping[str, Listing]) -> None:
    """Raises a `UserError` if the values of masks mean one thing in one root, and another or nothing in another."""
    names = {root: listing.value_names for root, listing in listings.items() if listing.records}
    require_same_names(names)
    without = [root for root, one in names.items() if not one]
    if without and len(without) < len(names):
        file, root = next((root for root, one in names.items() if one)), without[0]
        raise UserError(
            f"A file in {file} names the values of its masks, and none does in {root}, where they may mean something "
            "else. Shard these corpora one by one, or set corpus.mask_values."
        )


def _list_manifest(root: Location, settings: CorpusSettings) -> Listing:
    if not is_table(root):
        raise UserError(f"{root}: the layout manifest expects {manifest.EXPECTS}; set corpus.root to one.")
    listing = manifest.list_manifest(root, settings)
    because = f"corpus.root is a {' or '.join(one for one in TABLES if root.name.lower().endswith(one))} file"
    return listing if settings.layout == "manifest" else replace(listing, because=because)


def _list_tree(tree: FileTree, settings: CorpusSettings) -> Listing:
    if settings.layout != "auto":
        listing = next(layout for layout in _LAYOUTS if layout.name == settings.layout).read(tree, settings)
    else:
        found = _recognise(tree)
        try:
            listings = [replace(layout.read(tree, settings), because=because) for layout, because in found]
            listing = listings[0] if len(listings) == 1 else _united([_of_set(each) for each in listings])
        except NoLayoutError as error:
            expected = "\n".join(f"  {layout.name}: {layout.expects}" for layout in _LAYOUTS)
            raise NoLayoutError(
                f"{error}\nThese layouts are read:\n  manifest: {manifest.EXPECTS}\n{expected}\nAll are described in "
                f"docs/input.md; --corpus.root {PHANTOM} draws chest X-rays to try."
            ) from None
    return replace(listing, recognition=[*tree.notes, *listing.recognition])


def _recognise(tree: FileTree) -> list[tuple[Layout, str]]:
    """Returns the layouts that fit, with the evidence. Several may do so for public sets, which are then united."""
    found = [(layout, because) for layout in _LAYOUTS if (because := layout.recognise(tree))]
    names = [layout for layout, _ in found]
    if PAIRS in names:
        # JSRT's folders are named like those of any pairs. The files of the other sets are also kept in other folders.
        found = [
            (layout, because) for layout, because in found if layout in ((JSRT,) if JSRT in names else (PAIRS, DICOM))
        ]
    if not found:
        return [(PAIRS, "by the names of files")]
    if len(found) > 1 and not all(layout in _PUBLIC for layout, _ in found):
        reasons = "; ".join(f"{layout.name} ({because})" for layout, because in found)
        raise UserError(
            f"{tree.name}: several layouts fit: {reasons}. Set corpus.layout to the one that is meant, or corpus.root "
            "to the folder of one corpus."
        )
    return found


def _of_set(listing: Listing) -> Listing:
    """Returns the listing of one of several public sets in one folder; the name of the set becomes a group."""

    def of(records: Iterable[Record]) -> list[Record]:
        return [replace(record, groups={**record.groups, "set": listing.layout}) for record in records]

    return replace(listing, records=of(listing.records), unlabelled=of(listing.unlabelled))


def _of_root(listing: Listing, name: str) -> Listing:
    """Returns the listing of one of several roots; its name becomes a group, and a part of the ids of its images.

    A root that is named by a split, such as `train`, prescribes it where nothing in the root does.
    """
    split = read_words(name.rpartition("/")[2]).split

    def of(records: Iterable[Record]) -> list[Record]:
        return [
            replace(
                record,
                image_id=f"{name}/{record.image_id}",
                groups={"root": name, **record.groups},
                split=record.split or split,
            )
            for record in records
        ]

    return replace(
        listing,
        records=of(listing.records),
        set_aside=[replace(one, image_id=f"{name}/{one.image_id}") for one in listing.set_aside],
        unlabelled=of(listing.unlabelled),
        because=f"{name}: {listing.because}" if listing.because else "",
        recognition=[f"{name}: {line}" for line in listing.recognition],
        warnings=[f"{name}: {line}" for line in listing.warnings],
    )


def _united(listings: Sequence[Listing]) -> Listing:
    """Joins the listings of several corpora."""
    return Listing(
        records=sorted((one for each in listings for one in each.records), key=_by_id),
        # Each of several sets in a folder sets aside what is no file.
        set_aside=sorted(dict.fromkeys(one for each in listings for one in each.set_aside), key=_by_id),
        layout=" and ".join(dict.fromkeys(listing.layout for listing in listings)),
        unlabelled=sorted((one for each in listings for one in each.unlabelled), key=_by_id),
        ignored=sum(listing.ignored for listing in listings),
        because="; ".join(listing.because for listing in listings if listing.because),
        recognition=[line for listing in listings for line in listing.recognition],
        warnings=[line for listing in listings for line in listing.warnings],
        value_names=dict(item for listing in listings for item in listing.value_names.items()),
        structures=list(dict.fromkeys(name for listing in listings for name in listing.structures)),
        keep_empty=any(listing.keep_empty for listing in listings),
        files=[state for listing in listings for state in listing.files],
    )


def _names(roots: Sequence[Location]) -> list[str]:
    """Returns the last folders of roots, as many as tell them apart."""
    parts = [root.path.rstrip("/").split("/") for root in roots]
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(one[-depth:]) for one in parts}) < len(parts):
        depth += 1
    return ["/".join(one[-depth:]) for one in parts]


def _by_id(one: Record | SetAside) -> str:
    return one.image_id


_PUBLIC = (MONTGOMERY, SHENZHEN, JSRT)
_LAYOUTS = (PAIRS, DICOM, *_PUBLIC)
