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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from lungseg_ray.config import PHANTOM, CorpusSettings, Roots
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.layouts.classes import choose_classes, known_values
from lungseg_ray.corpus.layouts.listing import Listing, NoLayoutError
from lungseg_ray.corpus.layouts.manifest import list_manifest
from lungseg_ray.corpus.layouts.patients import NONE
from lungseg_ray.corpus.layouts.several import list_roots
from lungseg_ray.corpus.layouts.single import list_root
from lungseg_ray.corpus.layouts.table import is_table
from lungseg_ray.corpus.layouts.tree import FilesState, FileTree
from lungseg_ray.corpus.probe import look
from lungseg_ray.corpus.record import Record
from lungseg_ray.storage import Location
from lungseg_ray.text import named

__all__ = ["Listing", "files_state", "list_corpus"]


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
        listing = list_roots(settings.root, settings, outputs)
    else:
        listing = list_root(settings, outputs)
    if listing.keep_empty and "empty_masks" not in settings.model_fields_set:
        settings = settings.model_copy(update={"empty_masks": "keep"})
    listing = _with_patients(listing)
    settings, said = choose_classes(listing, settings)
    found = look(listing.records, settings, known_values(listing, settings))
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


def files_state(settings: CorpusSettings, outputs: Sequence[Location] = ()) -> list[FilesState]:
    """Returns the present state of the files of a corpus, as `Listing.files`, without reading any of them but tables.

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
    return [state for root in roots if isinstance(root, Location) for state in _state_of_root(root, settings, outputs)]


def _state_of_root(root: Location, settings: CorpusSettings, outputs: Sequence[Location]) -> Sequence[FilesState]:
    if settings.layout == "manifest" or is_table(root):
        with suppress(NoLayoutError):
            return list_manifest(root, settings.model_copy(update={"patients": NONE})).files
    return [(FileTree.of_file(root) if root.is_file() else FileTree.whole(root, outputs)).state]
