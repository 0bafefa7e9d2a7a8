"""What listing a corpus leads to, and what all layouts need for it: the files that are there, matched by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyarrow import fs

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", *DICOM_SUFFIXES, ".img")
"""Of image and mask files, where a layout does not say it more narrowly."""

_SHOWN = 120
_NAMED = 8


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
class Entry:
    """A file that was listed.

    Attributes:
        path: below the corpus's root, parts separated by "/".
        place: where it lies.
        size: bytes.
        modified_ns: time of the last change, nanoseconds.
    """

    path: str
    place: Location
    size: int
    modified_ns: int


Found = Mapping[str, list[Entry]]
"""Files by image id; more than one of an id is too many."""


@dataclass(frozen=True)
class Tree:
    """The files below the root of a corpus; none of them has been opened.

    Attributes:
        root: the corpus.
        files: ordered by path.
        folders: paths below the root.
        misnamed: files whose paths are not UTF-8; nothing but a message may hold such a path.
        special: pipes, devices and the like; who opens one may wait forever.
    """

    root: Location
    files: list[Entry]
    folders: frozenset[str]
    misnamed: list[Entry]
    special: list[Entry]

    @classmethod
    def of(cls, root: Location) -> Tree:
        """Lists a folder.

        Raises:
            UserError: if the root is a file or not there, or if a folder in it cannot be listed.
        """
        try:
            listed = root.list(recursive=True)
        except NotADirectoryError as error:
            raise UserError(f"{root}: expected a folder, found a file. Correct corpus.root.") from error
        except OSError as error:
            if not root.is_local:
                raise
            where, why = error.filename or root, error.strerror or error
            raise UserError(
                f"{shown(str(where), 240)}: this folder cannot be listed ({why}), so that it is not known which images "
                "the corpus holds. Make it readable, or move it out of corpus.root."
            ) from error
        if not listed and not root.exists():
            raise UserError(f"{root}: there is no such folder. Correct corpus.root.")
        start = len(root.uri.rstrip("/")) + 1
        files: list[Entry] = []
        misnamed: list[Entry] = []
        special: list[Entry] = []
        folders: set[str] = set()
        for place, info in listed:
            path = place.uri[start:]
            # A bucket has no folders; those of its files stand for them.
            folders.update(path[: match.start()] for match in re.finditer("/", path))
            if info.type == fs.FileType.Directory:
                folders.add(path)
            else:
                entry = Entry(path, place, info.size or 0, info.mtime_ns or 0)
                kind = files if info.type == fs.FileType.File else special
                (kind if is_utf8(path) else misnamed).append(entry)
        return cls(root, files, frozenset(filter(is_utf8, folders)), misnamed, special)

    def match(self, pattern: re.Pattern[str]) -> dict[str, list[Entry]]:
        """The files whose whole path matches, by what the pattern's group `id` matches."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.files:
            if match := pattern.fullmatch(entry.path):
                found[match["id"]].append(entry)
        return dict(found)

    def count(self, pattern: re.Pattern[str]) -> int:
        """How many files there are whose whole path matches."""
        return sum(pattern.fullmatch(entry.path) is not None for entry in self.files)

    def unusable(self, folders: Sequence[str] = ()) -> list[SetAside]:
        """What is named like an image and is set aside for its name, or since it is a pipe or the like.

        Args:
            folders: to look in, of which the image id does not speak; the whole tree if there are none.
        """
        name = "expected a name in UTF-8, found other bytes; rename the file, and its partner alike"
        kind = "expected a file, found a pipe, a device or the like"
        within = tuple(f"{folder}/" for folder in folders)
        found = []
        for entries, reason, detail in ((self.misnamed, "bad_name", name), (self.special, "unreadable", kind)):
            for entry in entries:
                inside = next((start for start in within if entry.path.startswith(start)), "")
                if (inside or not within) and entry.path.lower().endswith(SUFFIXES):
                    image_id = without_suffix(escaped(entry.path[len(inside) :]))
                    found.append(SetAside(image_id, escaped(entry.place.uri), reason, detail))
        return found

    def describe(self) -> str:
        """The names of what lies in the root, for a message."""
        paths = [*self.folders, *(entry.path for entry in [*self.files, *self.misnamed, *self.special])]
        return named(sorted({path.split("/", 1)[0] for path in paths}))


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
    recognise: Callable[[Tree], str]
    read: Callable[[Tree, CorpusSettings], Listing]


def anywhere(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """For `Tree.match`: files that match it in any folder; the rest of a pattern's path may hold any character."""
    return re.compile(rf"(.*/)?{pattern}", re.DOTALL | flags)


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
    images: Mapping[str, Found],
    masks: Mapping[str, Found],
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


def without_suffix(path: str) -> str:
    """The path without the last suffix of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name[1:] else name)


def escaped(text: str) -> str:
    r"""The text with what cannot be printed written as `\n`, and bytes of a name that are not UTF-8 as `\xff`."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def shown(text: str, most: int = _SHOWN) -> str:
    """The text as a message may hold it: printable, and no longer than `most` characters and a few."""
    return escaped(text) if len(text) <= most else f"{escaped(text[:most])}... ({len(text)} characters)"


def named(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(shown(name) for name in names[:_NAMED]) or "nothing") + more


def _folders(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def is_utf8(text: str) -> bool:
    """Whether a path is UTF-8; Python gives other bytes of a name as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
