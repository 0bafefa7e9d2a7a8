"""The types `Listing` and `Layout`, and the functions with which layouts match images and masks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.tree import Entry, FilesById, FilesState, FileTree, state_of
from lungseg_ray.corpus.record import MaskSource, Record, SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.text import named, shown


class NoLayoutError(UserError):
    """A folder in which no layout finds images with masks. The message says what was found, and the nearest reading."""


@dataclass(frozen=True)
class Listing:
    """The content of a corpus, before any image is read.

    Attributes:
        records: The images with a mask, ordered by `image_id`.
        set_aside: The files that cannot be used, ordered by `image_id`.
        layout: The name of the layout, or "phantom".
        unlabelled: The images that have no mask in a layout that allows this, ordered by `image_id`. They are neither
            used nor set aside.
        ignored: The number of files in the folders of images and masks whose names are not those of images and masks.
        because: The evidence by which the layout was recognised, as a clause; empty if the user named the layout.
        recognition: What was found out about the corpus besides the layout, such as whose the images are; for the user.
        warnings: What the user should check, as sentences.
        glances: Warnings of the few images that were looked at, which whoever reads all of them knows better.
        value_names: Names of structures by the values or colours of masks, where a file of the corpus says so.
        structures: The names of the structures that masks distinguish, by their files or annotations.
        unknown_patients: The number of records of which nothing says whose they are.
        keep_empty: Whether the corpus says of some images that nothing in them is marked.
        files: The state of the files of each root, by which a later change is noticed.
        corpus: The settings by which the files are read: those of the user, and what was found out from some files.
    """

    records: list[Record]
    set_aside: list[SetAside]
    layout: str
    unlabelled: list[Record] = field(default_factory=list)
    ignored: int = 0
    because: str = ""
    recognition: Sequence[str] = ()
    warnings: Sequence[str] = ()
    glances: Sequence[str] = ()
    value_names: Mapping[str, str] = field(default_factory=dict)
    structures: Sequence[str] = ()
    unknown_patients: int = 0
    keep_empty: bool = False
    files: Sequence[FilesState] = ()
    corpus: CorpusSettings = field(default_factory=CorpusSettings)

    @property
    def recognised(self) -> str:
        """The name of the layout, and the evidence by which it was recognised."""
        return f"{self.layout} ({self.because})" if self.because else self.layout


@dataclass(frozen=True)
class Layout:
    """An arrangement of images and masks in a folder.

    Attributes:
        name: The value of corpus.layout.
        expects: The files that the layout needs, in one line.
        recognise: A function that returns the evidence for the layout in a tree, as a clause ("found images/ and
            masks/"); empty if there is none.
        read: A function that lists the files of a tree. It raises a `UserError` if the tree has no files of this
            layout.
    """

    name: str
    expects: str
    recognise: Callable[[FileTree], str]
    read: Callable[[FileTree, CorpusSettings], Listing]


def make_record(
    image_id: str,
    image: Entry,
    masks: Sequence[Entry],
    settings: CorpusSettings,
    groups: Mapping[str, str],
    patient_id: str = "",
) -> Record:
    """Builds the record of an image.

    Args:
        image_id: The id of the image.
        image: The image file.
        masks: The files that form the mask together; empty if the image is unlabelled.
        settings: The settings of the corpus, of which `mask_scale` is used.
        groups: The subgroups of the image, by name.
        patient_id: The id of the patient; empty if it is not known.

    Returns:
        The record, with the state of its files.
    """
    files = (image, *masks)
    return Record(
        image_id=image_id,
        image_uri=image.place.uri,
        masks=tuple(MaskSource(mask.place.uri) for mask in masks),
        patient_id=patient_id,
        groups=groups,
        state=state_of(files),
        mask_scales=settings.mask_scales,
    )


def join(
    layout: str,
    images: Mapping[str, FilesById],
    masks: Mapping[str, FilesById],
    make: Callable[[str, Entry, Sequence[Entry]], Record],
    *,
    may_lack: bool = False,
) -> Listing:
    """Matches images and mask files by their image ids.

    Args:
        layout: The name of the layout.
        images: The images by image id, under the name of their only folder.
        masks: The mask files by image id, under the names of their folders. One file from each folder is needed for a
            mask.
        make: A function that builds a record from an image id, the image, and either all of its mask files or none.
        may_lack: Whether images without any mask file are unlabelled; otherwise they are set aside.

    Returns:
        The listing. An image id with several files of one kind, without an image, or without some of its mask files
        is set aside.
    """
    ((folder, pictures),) = images.items()
    records, unlabelled, aside = [], [], []
    for image_id in sorted({*pictures, *(one for found in masks.values() for one in found)}):
        image, parts = pictures.get(image_id, []), {name: found.get(image_id, []) for name, found in masks.items()}
        files = [entry for name in parts for entry in parts[name]]
        there = [name for name, found in parts.items() if found]
        same = next((found for found in (image, *parts.values()) if len(found) > 1), [])
        if same:
            detail = f"expected one file of this name, found {named([entry.path for entry in same])}"
            aside.append(SetAside(image_id, same[0].place.uri, "ambiguous", detail))
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
    """Adds files that are set aside to a listing, in order, and sets the number of ignored files.

    Args:
        listing: The listing.
        set_aside: Further files that cannot be used.
        ignored: The number of ignored files.

    Returns:
        A new listing.
    """
    aside = sorted([*listing.set_aside, *set_aside], key=lambda one: one.image_id)
    return replace(listing, set_aside=aside, ignored=ignored)


def _folders(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def united(listings: Sequence[Listing]) -> Listing:
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


def _by_id(one: Record | SetAside) -> str:
    return one.image_id
