"""The files below the root of a corpus, listed once and matched by patterns."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyarrow import fs

from lungseg_ray.corpus.record import SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import escaped, is_utf8, named, shown, without_suffix

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", *DICOM_SUFFIXES, ".img")
"""Of image and mask files, where a layout does not say it more narrowly."""


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


FilesById = Mapping[str, list[Entry]]
"""Files by image id; more than one of an id is too many."""


@dataclass(frozen=True)
class FileTree:
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
    def of(cls, root: Location) -> FileTree:
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


def anywhere(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """For `Tree.match`: files that match it in any folder; the rest of a pattern's path may hold any character."""
    return re.compile(rf"(.*/)?{pattern}", re.DOTALL | flags)
