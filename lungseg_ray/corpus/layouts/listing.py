"""What listing a corpus leads to, and what all layouts need for it: the files that are there, matched by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.tree import Entry, FilesById, FileTree
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.text import named, shown


@dataclass(frozen=True)
class Listing:
    """The content of a corpus, before any image is read.

    Attributes:
        records: images with a mask, ordered by `image_id`.
        set_aside: files that cannot be used, ordered by `image_id`.
        layout: its name, or "phantom".
        unlabelled: images that the layout knows to have no mask; neither used nor bad, ordered by `image_id`.
        ignored: files in the folders of images and masks whose names are not those of images and masks.
        because: what the layout was recognised by, a clause; empty where the user named it.
    """

    records: list[Record]
    set_aside: list[SetAside]
    layout: str
    unlabelled: list[Record] = field(default_factory=list)
    ignored: int = 0
    because: str = ""

    @property
    def recognised(self) -> str:
        """The layout, and why it was taken for that."""
        return f"{self.layout} ({self.because})" if self.because else self.layout


@dataclass(frozen=True)
class Layout:
    """A way in which images and masks may lie in a folder.

    Attributes:
        name: the value of corpus.layout.
        expects: what it needs, in a line.
        recognise: what in a tree speaks for it, a clause ("found images/ and masks/"); empty where nothing does.
        read: lists the records. It raises a `UserError` where nothing of the kind is there.
    """

    name: str
    expects: str
    recognise: Callable[[FileTree], str]
    read: Callable[[FileTree, CorpusSettings], Listing]


def make_record(
    image_id: str, image: Entry, masks: Sequence[Entry], settings: CorpusSettings, groups: Mapping[str, str]
) -> Record:
    """The record of an image that is a patient of its own."""
    files = (image, *masks)
    return Record(
        image_id=image_id,
        image_uri=image.place.uri,
        mask_uris=tuple(mask.place.uri for mask in masks),
        patient_id=image_id,
        groups=groups,
        size=sum(entry.size for entry in files),
        modified_ns=max(entry.modified_ns for entry in files),
        mask_scale=settings.mask_scale,
    )


def join(
    layout: str,
    images: Mapping[str, FilesById],
    masks: Mapping[str, FilesById],
    make: Callable[[str, Entry, Sequence[Entry]], Record],
    *,
    may_lack: bool = False,
) -> Listing:
    """Brings the files of each image together.

    Args:
        layout: its name.
        images: the images, by the name of their folder.
        masks: the files that make a mask together, by the names of their folders.
        make: a record of an image id, the image and all of its mask files, or none of them.
        may_lack: whether images without any mask file are unlabelled; else they are set aside.
    """
    ((folder, pictures),) = images.items()
    records, unlabelled, aside = [], [], []
    for image_id in sorted({*pictures, *(one for found in masks.values() for one in found)}):
        image, parts = pictures.get(image_id, []), {name: found.get(image_id, []) for name, found in masks.items()}
        files = [entry for name in parts for entry in parts[name]]
        there = [name for name, found in parts.items() if found]
        twins = next((found for found in (image, *parts.values()) if len(found) > 1), [])
        if twins:
            detail = f"expected one file of this name, found {named([entry.path for entry in twins])}"
            aside.append(SetAside(image_id, twins[0].place.uri, "ambiguous", detail))
        elif not image:
            detail = f"expected {folder}/{shown(image_id)}, found {_folders(there)} alone"
            aside.append(SetAside(image_id, files[0].place.uri, "no_image", detail))
        elif len(there) == len(parts):
            records.append(make(image_id, image[0], files))
        elif may_lack and not there:
            unlabelled.append(make(image_id, image[0], ()))
        else:
            wanted = " and ".join(f"{name}/{shown(image_id)}" for name in parts)
            detail = f"expected {wanted}, found {_folders([folder, *there])} alone"
            aside.append(SetAside(image_id, image[0].place.uri, "no_mask", detail))
    return Listing(records, aside, layout, unlabelled)


def complete(listing: Listing, *, set_aside: Iterable[SetAside] = (), ignored: int = 0) -> Listing:
    """The listing with more files set aside, in order."""
    aside = sorted([*listing.set_aside, *set_aside], key=lambda one: one.image_id)
    return replace(listing, set_aside=aside, ignored=ignored)


def _folders(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)
