"""Lists the files below the root of a corpus once, and matches their paths by regular expressions."""

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
"""The suffixes of image and mask files, for layouts that do not restrict them further."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        path: The path below the root of the corpus, with "/" between its parts.
        place: The location of the file.
        size: The size of the file, bytes.
        modified_ns: The time of the last change, nanoseconds since 1970.
    """

    path: str
    place: Location
    size: int
    modified_ns: int


FilesById = Mapping[str, list[Entry]]
"""The files by image id. More than one file for an id is an error of the corpus."""


@dataclass(frozen=True)
class FileTree:
    """The files below the root of a corpus, none of which has been opened.

    Attributes:
        root: The root of the corpus.
        files: The files, ordered by path.
        folders: The paths of the folders below the root.
        misnamed: The files whose paths are not UTF-8. Such a path may appear only in messages.
        special: Pipes, devices and the like. To open one may block forever.
    """

    root: Location
    files: list[Entry]
    folders: frozenset[str]
    misnamed: list[Entry]
    special: list[Entry]

    @classmethod
    def of(cls, root: Location) -> FileTree:
        """Lists a folder.

        Args:
            root: The root of the corpus.

        Returns:
            The files and folders below the root.

        Raises:
            UserError: If the root is a file or does not exist, or if a folder in it cannot be listed.
            OSError: If a bucket cannot be used.
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
            # A bucket has no folders, so they are derived from the paths of its files.
            folders.update(path[: match.start()] for match in re.finditer("/", path))
            if info.type == fs.FileType.Directory:
                folders.add(path)
            else:
                entry = Entry(path, place, info.size or 0, info.mtime_ns or 0)
                kind = files if info.type == fs.FileType.File else special
                (kind if is_utf8(path) else misnamed).append(entry)
        return cls(root, files, frozenset(filter(is_utf8, folders)), misnamed, special)

    def match(self, pattern: re.Pattern[str]) -> dict[str, list[Entry]]:
        """Finds the files whose whole path matches a pattern.

        Args:
            pattern: The regular expression, with a group `id`.

        Returns:
            The files by the text that the group `id` matches.
        """
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.files:
            if match := pattern.fullmatch(entry.path):
                found[match["id"]].append(entry)
        return dict(found)

    def count(self, pattern: re.Pattern[str]) -> int:
        """Returns the number of files whose whole path matches a pattern."""
        return sum(pattern.fullmatch(entry.path) is not None for entry in self.files)

    def unusable(self, folders: Sequence[str] = ()) -> list[SetAside]:
        """Returns what is named like an image but is set aside, because its name is not UTF-8 or it is not a file.

        Args:
            folders: The folders to search; the image id does not contain them. The whole tree is searched if there are
                none.

        Returns:
            The files, with the reason `bad_name` for a name that is not UTF-8, or `unreadable` for a pipe, a device or
            the like.
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
        """Returns the names of the files and folders in the root, for a message."""
        paths = [*self.folders, *(entry.path for entry in [*self.files, *self.misnamed, *self.special])]
        return named(sorted({path.split("/", 1)[0] for path in paths}))


def anywhere(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compiles a pattern for `FileTree.match` that matches files in any folder.

    Args:
        pattern: The regular expression of the end of the path. Its dot matches every character, including a newline.
        flags: Further flags of `re.compile`.

    Returns:
        The compiled pattern. The folders before it may contain any character.
    """
    return re.compile(rf"(.*/)?{pattern}", re.DOTALL | flags)
