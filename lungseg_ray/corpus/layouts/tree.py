"""Lists the files below the root of a corpus once, and matches their paths by regular expressions."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs

from lungseg_ray.corpus.record import SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.storage import REQUESTS, Location, StorageError
from lungseg_ray.text import counted, escaped, is_utf8, named, shown, without_suffix

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_OTHERS = (".bmp", ".webp", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm", ".npy", ".nii", ".nii.gz")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", *DICOM_SUFFIXES, ".img", *_OTHERS)
"""The suffixes of image and mask files, for layouts that do not restrict them further."""
ANNOTATION_SUFFIXES = (".json",)
"""The suffixes of files that describe the mask of one image by shapes."""
_JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "$recycle.bin", "system volume information"}
_JUNK |= {"lost+found", "__pycache__"}
_JUNK_STARTS = (".", "~$")
_THUMBNAILS = {"thumbs", "thumbnail", "thumbnails"}
_SHOWN_DEPTH, _SHOWN_KINDS = 3, 6
_LONGEST_SUFFIX = 8
_LISTED = 50
"""From this number of files in a folder of a bucket on, the folder is listed, and not each file looked up."""
_TOGETHER = 256
"""The number of local files that a thread looks up at once."""
_FEWEST_COPIED = 4
"""Folders with fewer files than this are not compared with others."""
_MOST_COPIES = 4
"""More folders than this with files of the same names and sizes are those of patients, and not a corpus and copies."""
_COMPARED = 8
"""The number of compressed files of two equal folders whose content is compared."""
_COMPRESSED = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".jp2", ".j2k", ".gz", ".zip", ".xlsx", ".parquet")


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


class FilesState(NamedTuple):
    """What tells whether the files of a corpus have changed.

    Attributes:
        files: The number of files.
        sha256: A hash of their paths, sizes and times of change, hexadecimal.
    """

    files: int
    sha256: str

    @classmethod
    def of(cls, files: Sequence[Entry]) -> FilesState:
        """Returns the state of files, ordered by path."""
        digest = hashlib.sha256()
        for entry in files:
            digest.update(f"{entry.path}\0{entry.size}\0{entry.modified_ns}\n".encode())
        return cls(len(files), digest.hexdigest())


def state_of(files: Iterable[Entry]) -> str:
    """Returns a hash of the sizes and times of change of the files of an image, by which a change is noticed."""
    text = " ".join(f"{entry.size}:{entry.modified_ns}" for entry in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entries_of(places: Iterable[Location]) -> dict[str, Entry]:
    """Looks up files that are known by their locations alone.

    Folders of a bucket in which many of the files lie are listed, since each request tells of a thousand files then.

    Args:
        places: The locations.

    Returns:
        The entries by URI; none for a file that does not exist or cannot be looked up.

    Raises:
        StorageError: If a bucket cannot be used.
    """
    by_folder: dict[str, list[Location]] = defaultdict(list)
    for place in places:
        by_folder[place.uri.rpartition("/")[0]].append(place)
    local = [place for found in by_folder.values() for place in found if place.is_local]
    remote = {folder: found for folder, found in by_folder.items() if not found[0].is_local}
    few = [[place] for found in remote.values() for place in found if len(found) < _LISTED]
    listed = [Location(folder) for folder, found in remote.items() if len(found) >= _LISTED]
    with ThreadPoolExecutor(REQUESTS) as pool:
        parts = [*few, *(local[start : start + _TOGETHER] for start in range(0, len(local), _TOGETHER))]
        infos = [*chain.from_iterable(pool.map(_infos, parts)), *chain.from_iterable(pool.map(Location.list, listed))]
    return {
        place.uri: Entry("", place, info.size or 0, info.mtime_ns or 0)
        for place, info in infos
        if info.type == fs.FileType.File
    }


def _infos(places: Sequence[Location]) -> list[tuple[Location, fs.FileInfo]]:
    found = []
    for place in places:
        try:
            found.append((place, place.info()))
        except StorageError:
            raise
        except (OSError, ValueError):
            continue
    return found


FilesById = Mapping[str, list[Entry]]
"""The files by image id. More than one file for an id is an error of the corpus."""


@dataclass(frozen=True)
class FileTree:
    """The files below the root of a corpus, none of which has been opened.

    Attributes:
        name: The root of the corpus, or the roots, for messages.
        files: The files, ordered by path.
        folders: The paths of the folders below the root.
        misnamed: The files whose paths are not UTF-8. Such a path may appear only in messages.
        special: Pipes, devices and the like. To open one may block forever.
        state: What tells whether the files have changed, copies included.
        notes: What was left out of the tree, for the user.
    """

    name: str
    files: list[Entry]
    folders: frozenset[str]
    misnamed: list[Entry]
    special: list[Entry]
    state: FilesState
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, root: Location, outputs: Sequence[Location] = ()) -> FileTree:
        """Lists a folder, without the files that systems and programs leave, and without copies of folders.

        Args:
            root: The root of the corpus.
            outputs: Folders that jobs write; those below the root are left out.

        Returns:
            The files and folders below the root.

        Raises:
            UserError: If the root is a file or does not exist, or if a folder in it cannot be listed.
            OSError: If a bucket cannot be used.
        """
        tree = cls.whole(root, outputs)
        files, notes = without_copies(tree.files)
        return replace(tree, files=files, notes=[*notes, *tree.notes])

    @classmethod
    def whole(cls, root: Location, outputs: Sequence[Location] = ()) -> FileTree:
        """Lists a folder as `of` does, with copies of folders. Opens no file."""
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
            near = _nearest(root)
            advice = f"Is it {near}?" if near else "Correct corpus.root."
            raise UserError(f"{root}: there is no such folder. {advice}")
        if any(output.uri.rstrip("/") == root.uri.rstrip("/") for output in outputs):
            raise UserError(
                f"{root}: this folder is the corpus, and the job would write into it. Set shards.root and runs.root to "
                "other folders, which may be in it."
            )
        start = len(root.uri.rstrip("/")) + 1
        files: list[Entry] = []
        misnamed: list[Entry] = []
        special: list[Entry] = []
        folders: set[str] = set()
        junk = 0
        own = tuple(f"{output.uri.rstrip('/')}/" for output in outputs if output.uri.startswith(f"{root.uri}/"))
        for place, info in listed:
            path = place.uri[start:]
            if f"{place.uri}/".startswith(own):
                continue
            if is_junk(path):
                junk += info.type == fs.FileType.File
                continue
            # A bucket has no folders, so they are derived from the paths of its files.
            folders.update(path[: match.start()] for match in re.finditer("/", path))
            if info.type == fs.FileType.Directory:
                folders.add(path)
            else:
                entry = Entry(path, place, info.size or 0, info.mtime_ns or 0)
                kind = files if info.type == fs.FileType.File else special
                (kind if is_utf8(path) else misnamed).append(entry)
        notes = [f"left out: {counted(junk, 'file')} that systems and programs leave (hidden, thumbnails)"]
        return cls(
            str(root),
            files,
            frozenset(filter(is_utf8, folders)),
            misnamed,
            special,
            FilesState.of(files),
            notes if junk else [],
        )

    @classmethod
    def of_file(cls, place: Location) -> FileTree:
        """Returns the tree of a single file, whose path is empty: a table that annotates the images of another root."""
        info = place.info()
        entry = Entry("", place, info.size or 0, info.mtime_ns or 0)
        return cls(str(place), [entry], frozenset(), [], [], FilesState.of([entry]))

    @classmethod
    def joined(cls, trees: Mapping[str, FileTree]) -> FileTree:
        """Returns one tree of several, each in a folder of its own.

        Args:
            trees: The trees by the paths of their folders, or of their file if they are of one.
        """

        def below(name: str, entries: Iterable[Entry]) -> list[Entry]:
            return [replace(entry, path=f"{name}/{entry.path}" if entry.path else name) for entry in entries]

        files = [one for name, tree in trees.items() for one in below(name, tree.files)]
        files.sort(key=lambda entry: entry.path)
        return cls(
            " and ".join(tree.name for tree in trees.values()),
            files,
            frozenset(folder for entry in files for folder in above(entry.path)),
            [one for name, tree in trees.items() for one in below(name, tree.misnamed)],
            [one for name, tree in trees.items() for one in below(name, tree.special)],
            FilesState.of(files),
            [note for tree in trees.values() for note in tree.notes],
        )

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
        """Describes the files, for a message: how many of each kind there are in which folders."""
        counts: Counter[tuple[str, str]] = Counter()
        for entry in [*self.files, *self.misnamed, *self.special]:
            folder, _, name = entry.path.rpartition("/")
            few = "/".join(folder.split("/")[:_SHOWN_DEPTH])
            counts[few, _suffix(name)] += 1
        kinds = [
            f"{number} {suffix or 'without suffix'} in {shown(folder) + '/' if folder else 'the folder itself'}"
            for (folder, suffix), number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        if not kinds:
            empty = sorted(folder for folder in self.folders if "/" not in folder)
            return f"no file in {named([f'{folder}/' for folder in empty])}" if empty else "nothing"
        more = f" and files in {len(kinds) - _SHOWN_KINDS} more places" if len(kinds) > _SHOWN_KINDS else ""
        return ", ".join(kinds[:_SHOWN_KINDS]) + more


def _nearest(root: Location) -> str:
    """Returns the folder beside a local one that does not exist whose name is most like its own; empty if none is."""
    above = Path(root.path).parent
    if not root.is_local or not above.is_dir():
        return ""
    with suppress(OSError):
        names = [entry.name for entry in above.iterdir() if entry.is_dir()]
        return next((str(above / name) for name in difflib.get_close_matches(root.name, names, n=1)), "")
    return ""


def _suffix(name: str) -> str:
    """Returns the suffix of a file as it is shown; that of a compressed file is two suffixes."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or not dot or not suffix.isalnum() or len(suffix) > _LONGEST_SUFFIX or suffix.isdigit():
        return ""
    inner = stem.rpartition(".")[2] if "." in stem else ""
    return f".{inner}.{suffix}" if suffix.lower() in ("gz", "zip", "bz2") and inner.isalpha() else f".{suffix}"


def is_junk(path: str) -> bool:
    """Returns whether a file or a folder is left by a system or a program, and is no part of a corpus."""
    # Only folders above a file count as thumbnails: a file of that name may be an image.
    parts = path.lower().split("/")
    return any(part.startswith(_JUNK_STARTS) or part in _JUNK for part in parts) or bool(_THUMBNAILS & {*parts[:-1]})


def without_copies(files: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Leaves out folders whose files are all in another folder, too, as in archives that hold a corpus twice.

    Folders are compared by the names and sizes of all files below them, and then by the content of a few files.

    Args:
        files: The files of a tree, ordered by path.

    Returns:
        The files without copies, and a note for the user for each folder that is left out.
    """
    contents: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for entry in files:
        for match in re.finditer("/", entry.path):
            contents[entry.path[: match.start()]].append((entry.path[match.end() :], entry.size))
    same: dict[str, list[str]] = defaultdict(list)
    for folder, content in contents.items():
        # A folder of files alone may be equal to another for other reasons, as masks without a pixel are.
        if len(content) >= _FEWEST_COPIED and len({path.rpartition("/")[0] for path, _ in content}) > 1:
            same[hashlib.sha256(repr(content).encode(errors="surrogatepass")).hexdigest()].append(folder)
    places = {entry.path: entry.place for entry in files}
    left_out: dict[str, str] = {}
    groups = [sorted(folders, key=_depth_first) for folders in same.values() if 1 < len(folders) <= 1 + _MOST_COPIES]
    for group in sorted(groups, key=lambda folders: _depth_first(folders[0])):
        kept, *others = [folder for folder in group if left_out.keys().isdisjoint(above(folder))] or [""]
        for folder in others:
            # A folder that holds nothing but another folder has the content of that one, under other names.
            if not folder.startswith(f"{kept}/") and _equal_files(kept, folder, contents[kept], places):
                left_out[folder] = kept
    tops = [folder for folder in left_out if left_out.keys().isdisjoint(above(folder))]
    if not tops:
        return list(files), []
    starts = tuple(f"{folder}/" for folder in tops)
    notes = [f"left out: {shown(folder)}/, whose files are all in {shown(left_out[folder])}/, too" for folder in tops]
    return [entry for entry in files if not entry.path.startswith(starts)], notes


def _depth_first(folder: str) -> tuple[int, list[str]]:
    return folder.count("/"), folder.split("/")


def above(path: str) -> list[str]:
    """Returns all folders above a file or a folder, the outermost first."""
    return [path[: match.start()] for match in re.finditer("/", path)]


def _equal_files(one: str, other: str, content: Sequence[tuple[str, int]], places: Mapping[str, Location]) -> bool:
    """Whether the files of two folders, whose names and sizes are equal, are equal as far as they are compared.

    Sizes say much of compressed files. Of others, which are as large as any of their kind, all are compared.
    """
    compressed = [path for path, _ in content if path.lower().endswith(_COMPRESSED)]
    compared = [path for path, _ in content if not path.lower().endswith(_COMPRESSED)]
    compared += compressed[:: max(len(compressed) // _COMPARED, 1)]

    def equal(path: str) -> bool:
        return places[f"{one}/{path}"].read_bytes() == places[f"{other}/{path}"].read_bytes()

    try:
        with ThreadPoolExecutor(REQUESTS) as pool:
            return all(pool.map(equal, compared))
    except OSError:
        return False


def anywhere(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compiles a pattern for `FileTree.match` that matches files in any folder.

    Args:
        pattern: The regular expression of the end of the path. Its dot matches every character, including a newline.
        flags: Further flags of `re.compile`.

    Returns:
        The compiled pattern. The folders before it may contain any character.
    """
    return re.compile(rf"(.*/)?{pattern}", re.DOTALL | flags)
