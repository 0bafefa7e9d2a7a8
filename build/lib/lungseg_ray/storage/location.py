"""Locations of files and folders on a local disk or in a bucket, with operations to read, list and write them.

No other module of the project parses URIs.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import random
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from lungseg_ray.errors import UserError
from lungseg_ray.storage.retries import StorageError
from lungseg_ray.storage.s3 import TROUBLES, endpoint_url, region_of, s3_client, s3_filesystem

SCHEMES = ("s3", "gs")

REQUESTS = 8
"""The number of files of a folder that are uploaded or deleted at the same time."""
DEEPEST_LINK = 4
"""The largest number of symbolic links to folders that a path may lead through when folders are listed."""


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


@contextmanager
def translate_errors(place: Location) -> Iterator[None]:
    """Converts the exceptions that pyarrow and botocore raise about a location in a bucket to `StorageError`.

    Three kinds of exceptions pass unchanged: all those about a local disk, `FileNotFoundError` for a file that is
    missing in a bucket that exists, and `IsADirectoryError` and `NotADirectoryError`.

    Args:
        place: The location that the block operates on.

    Raises:
        StorageError: For every other problem with a bucket, one that does not exist included.
    """  # noqa: DOC501 - the others pass through
    try:
        yield
    except (StorageError, IsADirectoryError, NotADirectoryError):
        raise
    except FileNotFoundError:
        _require_bucket(place)
        raise
    except (OSError, BotoCoreError, ClientError) as error:
        if place.is_local:
            raise
        raise StorageError(_sentence(place, error)) from error


def _sentence(place: Location, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if place.is_s3 and "No response body" in text:
        # The answer to a refused HEAD request contains no reason, unlike the answer to a refused listing.
        try:
            place.filesystem.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
        except OSError as better:
            text = str(better)
    store = (endpoint_url() or "AWS S3") if place.is_s3 else "The store"
    # Quoted names are removed, since the name of a file may contain words that are searched for below.
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    for pattern, meaning in TROUBLES:
        if place.is_s3 and re.search(pattern, bare, re.IGNORECASE):
            return f"{place}: {meaning.format(bucket=place.bucket, store=store)}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"${name}")
    return f"{place}: {store} answered: {' '.join(text.split()).rstrip('.')}."


# By endpoint and bucket: the buckets that are known to exist, and what `supports_exclusive_create` found.
_known_buckets: set[tuple[str, str]] = set()
_exclusive_create: dict[tuple[str, str], bool] = {}


def _require_bucket(place: Location) -> None:
    """Raises `StorageError` if the bucket does not exist, which pyarrow reports as a missing file."""
    key = (endpoint_url(), place.bucket)
    if not place.is_s3 or key in _known_buckets:
        return
    try:
        found = place.filesystem.get_file_info(place.bucket).type != fs.FileType.NotFound
    except OSError as error:
        # Credentials for a prefix may not permit a query of its bucket. It is sufficient that the store has answered.
        if "ACCESS_DENIED" not in str(error):
            raise StorageError(_sentence(place, error)) from error
        found = True
    if not found:
        raise StorageError(_sentence(place, OSError("NO_SUCH_BUCKET")))
    _known_buckets.add(key)


class Location:
    """A file or a folder on a local disk or in a bucket.

    A location is pickled as its URI alone. Every process opens the file system from its own environment, so that no
    credentials are sent from one process to another.

    Every operation raises `StorageError` if a bucket cannot be used, one that does not exist included. On a local disk,
    it raises Python's own subclasses of `OSError`.

    Args:
        uri: An absolute path, or a URI with a scheme, a bucket and a prefix.

    Attributes:
        uri: The absolute path or the URI.
    """

    __slots__ = ("uri",)

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __repr__(self) -> str:
        return f"Location({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a path on a file system of this machine."""
        return self.uri.startswith("/")

    @property
    def is_s3(self) -> bool:
        """Whether this is a location in a bucket of AWS S3 or of a compatible store."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """The name of the bucket; empty on a local disk."""
        return self.path.split("/", 1)[0]

    @property
    def key(self) -> str:
        """The path within the bucket."""
        return self.path.partition("/")[2]

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system that contains this location."""
        if self.is_s3:
            with translate_errors(self):
                return s3_filesystem(endpoint_url(), region_of(self.bucket))
        return _filesystem("file:///" if self.is_local else f"{self.uri.split('://', 1)[0]}://{self.bucket}")

    @property
    def path(self) -> str:
        """The path within `filesystem`."""
        return self.uri if self.is_local else self.uri.split("://", 1)[1]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The last part of the path without its last suffix."""
        return self.name.rsplit(".", 1)[0] if "." in self.name[1:] else self.name

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def info(self) -> fs.FileInfo:
        """Queries the type, the size in bytes and the time of the last modification of the file or folder."""
        with translate_errors(self):
            found = self.filesystem.get_file_info(self.path)
            if found.type == fs.FileType.NotFound:
                _require_bucket(self)
            return found

    def exists(self) -> bool:
        """Returns whether a file or a folder exists at this location."""
        return self.info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Returns whether a file exists at this location."""
        return self.info().type == fs.FileType.File

    def is_dir(self) -> bool:
        """Returns whether a folder exists at this location."""
        return self.info().type == fs.FileType.Directory

    def read_bytes(self) -> bytes:
        """Reads the whole file.

        Returns:
            The content.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        if self.is_local:
            return Path(self.path).read_bytes()
        # The size of an input file is known, so that it is read in one request. A stream is read in pieces of 256 KB.
        with translate_errors(self), self.filesystem.open_input_file(self.path) as file:
            return file.read()

    def read_text(self) -> str:
        """Reads the whole file as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Writes the whole file atomically: a reader sees the old content or the new content, never a part of it."""
        if not self.is_local:
            # The data is written in one call, since a stream that is closed half-way leaves half a file.
            with translate_errors(self), self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        with _part(Path(self.path), data) as part:
            part.replace(self.path)

    def write_text(self, text: str) -> None:
        """Writes the whole file as UTF-8 text, atomically."""
        self.write_bytes(text.encode())

    def write_csv(self, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Writes a table as a CSV file with a header line, atomically.

        Args:
            rows: The values of each row, by the name of the column. A missing value becomes an empty cell, and a key
                that is not a column is ignored.
            columns: The names of the columns, in their order.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(text.getvalue())

    def create(self, data: bytes) -> bool:
        """Writes the whole file if it does not exist.

        Of any number of processes and machines that call this function, only one gets True. If
        `supports_exclusive_create` returns False, two that call it at the same moment may both get True.

        Args:
            data: The content of the file.

        Returns:
            True if this call wrote the file; False if the file existed already, in which case it stays unchanged.
        """
        if self.is_s3:
            with translate_errors(self):
                return _create(s3_client(endpoint_url(), region_of(self.bucket)), self, data)
        if not self.is_local:
            if self.exists():
                return False
            self.write_bytes(data)
            return True
        target = Path(self.path)
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

    def supports_exclusive_create(self) -> bool:
        """Returns whether `create` gives True to one caller only, for files below this folder.

        A local disk always guarantees it. A bucket of an S3 store is tested with a probe file below this folder, once
        per process. Other stores do not guarantee it.
        """
        if not self.is_s3:
            return self.is_local
        key = (endpoint_url(), self.bucket)
        if key not in _exclusive_create:
            _exclusive_create[key] = _supports_exclusive_create(self)
        return _exclusive_create[key]

    def list(self, *, recursive: bool = False) -> list[tuple[Location, fs.FileInfo]]:
        """Lists the files and folders below this folder, in the order of their names.

        On a local disk, a folder that a symbolic link leads back to is listed but not entered again. A broken link is
        listed as a file of 0 bytes. A name that is not UTF-8 contains lone surrogates, as everywhere in Python; the
        `path` of its `FileInfo` contains them escaped.

        Args:
            recursive: Whether the content of all folders below this one is listed as well.

        Returns:
            The location and the `FileInfo` of each file and folder; empty if this folder does not exist.

        Raises:
            OSError: On a local disk, if a folder cannot be listed, or if a path leads through more than `DEEPEST_LINK`
                links to folders. Its `filename` is the folder or the path.
        """
        if self.is_local:
            return sorted(_walk(self.path, recursive=recursive), key=lambda found: found[0].uri)
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        with translate_errors(self):
            found = sorted(self._listed(selector), key=lambda info: info.path)
            if not found:
                _require_bucket(self)
        return [(self._at(info.path), info) for info in found]

    def _listed(self, selector: fs.FileSelector) -> Any:
        for _ in range(20):
            # pyarrow raises if a file disappears after its folder was read and before the file itself is queried.
            with suppress(FileNotFoundError):
                return self.filesystem.get_file_info(selector)
        return self.filesystem.get_file_info(selector)

    def _at(self, path: str) -> Location:
        return Location(f"{self.uri.split('://', 1)[0]}://{path}")

    def make_dir(self) -> None:
        """Creates the folder and its parent folders if they do not exist.

        A bucket has no folders. For a location in an S3 bucket, this function only checks that the bucket exists.
        """
        if self.is_s3:
            # No marker object is written, since that would require permission to write above this prefix.
            _require_bucket(self)
        else:
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Deletes the file, or the folder with its whole content; does nothing if neither exists."""
        if self.is_s3:
            with translate_errors(self):
                return _delete(s3_client(endpoint_url(), region_of(self.bucket)), self)
        kind = self.info().type
        # Another process may delete it first.
        with suppress(FileNotFoundError), translate_errors(self):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind != fs.FileType.NotFound:
                self.filesystem.delete_file(self.path)

    def download(self, directory: Path) -> None:
        """Copies every file of this folder into the local folder `directory`."""
        with translate_errors(self):
            fs.copy_files(self.path, str(directory), source_filesystem=self.filesystem)

    def upload(self, directory: Path, *, last: Sequence[str] = ()) -> None:
        """Copies every file of a local folder into this folder, each of them atomically.

        Args:
            directory: The local folder.
            last: Files that are copied after all others are complete, one after the other in this order. Each is given
                by its path relative to `directory`.
        """
        paths = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]

        def put(path: str) -> None:
            (self / path).write_bytes(pa.memory_map(str(directory / path)).read_buffer())

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(put, (path for path in paths if path not in last)))
        for path in last:
            put(path)


def _walk(folder: str, *, recursive: bool) -> Iterator[tuple[Location, fs.FileInfo]]:
    """Yields the content of a local folder, in any order; identifies folders by device and inode, not by name."""
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
                yield Location(entry.path), info
                if recursive and info.type == fs.FileType.Directory:
                    pending.append((entry.path, above | {here}, links + entry.is_symlink()))


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
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def _create(client: Any, place: Location, data: bytes) -> bool:
    name = {"Bucket": place.bucket, "Key": place.key}
    writer = uuid.uuid4().hex
    for last in (False, False, False, True):
        try:
            client.put_object(**name, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
            return True
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                break
            if status != 409 or last:
                raise
            # Status 409: another client is writing or deleting the object at this moment.
            time.sleep(random.uniform(0.1, 0.5))
    # The existing object may be our own, from an earlier attempt whose answer was lost.
    try:
        return client.head_object(**name)["Metadata"].get("writer") == writer
    except ClientError:
        return False


def _delete(client: Any, place: Location) -> None:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=f"{place.key}/")
    keys = {place.key} | {item["Key"] for page in pages for item in page.get("Contents", [])}
    # Some stores keep a folder that once had content until it is deleted by its name, which needs an empty folder.
    folders = {key[:end] for key in keys for end in range(len(place.key) + 1, len(key) + 1) if key[end - 1] == "/"}

    def drop(key: str) -> None:
        client.delete_object(Bucket=place.bucket, Key=key)

    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(drop, keys - folders))
    for folder in sorted(folders, reverse=True):
        drop(folder)


def _supports_exclusive_create(folder: Location) -> bool:
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        return probe.create(b"") and not probe.create(b"")
    finally:
        probe.delete()


def locate(text: str) -> Location:
    """Converts a path or a URI to a location.

    Args:
        text: A path, which may start with `~` and, if relative, starts from the current directory; a `file://` URI; or
            `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`.

    Returns:
        The location.

    Raises:
        UserError: If the scheme is not supported, or if something other than a bucket and a prefix follows it.
    """
    if "://" not in text:
        return Location(str(Path(text).expanduser().absolute()))
    scheme, rest = text.split("://", 1)
    if scheme == "file":
        return Location(url2pathname(urlsplit(text).path))
    if scheme not in SCHEMES:
        raise UserError(f"{text}: expected a path or one of {', '.join(f'{one}://' for one in SCHEMES)}.")
    if "@" in rest or "?" in rest:
        raise UserError(
            f"{scheme}://...: expected a bucket and a prefix alone, found '@' or '?'. Keys and endpoints come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL), so that they are written nowhere."
        )
    place = Location(text.rstrip("/"))
    if not rest.strip("/") or "//" in rest.rstrip("/") or rest.startswith("/"):
        raise UserError(f"{text}: expected {scheme}://BUCKET/PREFIX, and nothing empty between two slashes.")
    return place
