"""Files and folders on a local disk: listed where folders link to one another, written completely or not at all."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

_LONGEST_PART = 240
DEEPEST_LINK = 4
"""The largest number of symbolic links to folders that a path may lead through when folders are listed."""


def walk(folder: str, *, recursive: bool) -> Iterator[tuple[str, fs.FileInfo]]:
    """Yields the content of a folder, in any order; identifies folders by device and inode, not by name.

    Args:
        folder: The absolute path of the folder.
        recursive: Whether the content of all folders below this one is yielded as well.

    Yields:
        The path and the `FileInfo` of each file and folder; nothing if the folder does not exist.

    Raises:
        OSError: If a folder cannot be listed, or if a path leads through more than `DEEPEST_LINK` links to folders. Its
            `filename` is the folder or the path.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]], int]] = [(folder, frozenset(), 0)]
    while pending:
        path, above, links = pending.pop()
        # A folder that another process deletes in the meantime is treated as if it had not existed.
        with suppress(FileNotFoundError):
            status = Path(path).stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            if links > DEEPEST_LINK:
                # Folders that link to one another have more paths than a listing can contain.
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            with os.scandir(path) as found:
                entries = list(found)
            for entry in entries:
                info = _look(entry)
                if info is None:
                    continue
                yield entry.path, info
                if recursive and info.type == fs.FileType.Directory:
                    pending.append((entry.path, above | {here}, links + entry.is_symlink()))


def read(path: Path) -> bytes:
    """Reads a whole file.

    Args:
        path: The path of the file.

    Raises:
        OSError: If it cannot be read, or is no file; to open a pipe would block until another process writes to it.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "expected a file, found a pipe, a device or the like", str(path))
        return stream.read()


def write(target: Path, data: bytes | pa.Buffer) -> None:
    """Writes the whole file atomically, and its folders if they do not exist.

    Args:
        target: The path of the file.
        data: The content of the file.
    """
    with _part(target, data) as part:
        part.replace(target)


def create(target: Path, data: bytes) -> bool:
    """Writes the whole file, and its folders, if the file does not exist.

    Args:
        target: The path of the file.
        data: The content of the file.

    Returns:
        True if this call wrote the file; False if the file existed already. Of any number of processes that call this
        function, only one gets True.
    """
    with _part(target, data) as part:
        try:
            os.link(part, target)
        except FileExistsError:
            # A network file system may have created the link and lost the answer to the request.
            return part.stat().st_nlink > 1
        except OSError:
            # This file system does not support hard links.
            try:
                stream = target.open("xb")
            except FileExistsError:
                return False
            with stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
    return True


def _look(entry: os.DirEntry[str]) -> fs.FileInfo | None:
    """Describes an entry of a folder as pyarrow does; returns None if the entry no longer exists."""
    path = os.fsencode(entry.path).decode(errors="backslashreplace")
    try:
        status = entry.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not entry.is_symlink():
            return None
        # This is a broken or circular link, or one to a folder without permission. Opening it will raise the error.
        kind = fs.FileType.Directory if entry.is_dir(follow_symlinks=False) else fs.FileType.File
        return fs.FileInfo(path, kind, size=0 if kind == fs.FileType.File else None)
    if stat.S_ISDIR(status.st_mode):
        return fs.FileInfo(path, fs.FileType.Directory, mtime_ns=status.st_mtime_ns)
    kind = fs.FileType.File if stat.S_ISREG(status.st_mode) else fs.FileType.Unknown
    return fs.FileInfo(path, kind, size=status.st_size, mtime_ns=status.st_mtime_ns)


@contextmanager
def _part(target: Path, data: bytes | pa.Buffer) -> Iterator[Path]:
    """Provides a complete file beside `target` under another name, and deletes it after the block."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, and that of the part is longer.
    name = os.fsdecode(os.fsencode(target.name)[:_LONGEST_PART])
    part = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)
