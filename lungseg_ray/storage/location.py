"""A URI becomes a place that can be read, listed and written whole; nothing else in the project parses URIs."""

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
"""Files of a folder that are uploaded or deleted at the same time."""
DEEPEST_LINK = 4
"""Links to folders that a path may lead through where folders are listed."""


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


@contextmanager
def translate_errors(place: Location) -> Iterator[None]:
    """Turns what pyarrow and botocore raise about a place in a bucket into a `StorageError`.

    Errors of a disk, and files that are missing in a bucket that is there, stay as they are.

    Raises:
        StorageError: for all other trouble with a bucket.
    """
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
        # A refused HEAD request carries no reason. A listing does.
        try:
            place.filesystem.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
        except OSError as better:
            text = str(better)
    store = (endpoint_url() or "AWS S3") if place.is_s3 else "The store"
    # A name of a file means nothing.
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    for pattern, meaning in TROUBLES:
        if place.is_s3 and re.search(pattern, bare, re.IGNORECASE):
            return f"{place}: {meaning.format(bucket=place.bucket, store=store)}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"${name}")
    return f"{place}: {store} answered: {' '.join(text.split()).rstrip('.')}."


# By endpoint and bucket: those that are known to be there, and whether they keep the promise of `Location.create`.
_known_buckets: set[tuple[str, str]] = set()
_honours: dict[tuple[str, str], bool] = {}


def _require_bucket(place: Location) -> None:
    """Raises a `StorageError` if the bucket is missing; pyarrow takes that for a file that is missing."""
    key = (endpoint_url(), place.bucket)
    if not place.is_s3 or key in _known_buckets:
        return
    try:
        found = place.filesystem.get_file_info(place.bucket).type != fs.FileType.NotFound
    except OSError as error:
        # Whoever may use a prefix alone may not ask about its bucket; the store has answered, that is enough.
        if "ACCESS_DENIED" not in str(error):
            raise StorageError(_sentence(place, error)) from error
        found = True
    if not found:
        raise StorageError(_sentence(place, OSError("NO_SUCH_BUCKET")))
    _known_buckets.add(key)


class Location:
    """A file or a folder, on a disk or in a bucket.

    It is pickled as its URI alone: every process opens the file system from its own environment, so that no
    credential travels.

    Every operation raises `StorageError` where a bucket cannot be used, one that does not exist included, and the
    `OSError`s of Python for a disk.

    Attributes:
        uri: an absolute path, or a scheme, a bucket and a prefix.
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
        """Whether this is a path of this machine's file system."""
        return self.uri.startswith("/")

    @property
    def is_s3(self) -> bool:
        """Whether this is a place in a bucket of AWS or of another store that speaks S3."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """The bucket's name; empty on a disk."""
        return self.path.split("/", 1)[0]

    @property
    def key(self) -> str:
        """The path within the bucket."""
        return self.path.partition("/")[2]

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system that holds this place."""
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
        """What is there: type, size in bytes, time of the last change."""
        with translate_errors(self):
            found = self.filesystem.get_file_info(self.path)
            if found.type == fs.FileType.NotFound:
                _require_bucket(self)
            return found

    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        return self.info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self.info().type == fs.FileType.File

    def is_dir(self) -> bool:
        """Whether a folder is there."""
        return self.info().type == fs.FileType.Directory

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: if there is none.
        """
        if self.is_local:
            return Path(self.path).read_bytes()
        # A file knows its size and is read in one request, a stream in pieces of 256 KB.
        with translate_errors(self), self.filesystem.open_input_file(self.path) as file:
            return file.read()

    def read_text(self) -> str:
        """The whole file as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Writes the whole file so that a reader sees the old content or the new, never a part."""
        if not self.is_local:
            # All of it in one call: a stream that is closed half-way leaves half a file.
            with translate_errors(self), self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        with _part(Path(self.path), data) as part:
            part.replace(self.path)

    def write_text(self, text: str) -> None:
        """Writes UTF-8 text, whole or not at all."""
        self.write_bytes(text.encode())

    def write_csv(self, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Writes a table as CSV with a header line, whole or not at all.

        Args:
            rows: the value of each column by name; a missing value is an empty cell, an unknown key is left out.
            columns: in their order.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(text.getvalue())

    def create(self, data: bytes) -> bool:
        """Writes the whole file if there is none; of any number of processes and machines, one alone gets True.

        Where `honours_create` is False, two that come at the same moment may both get it.

        Returns:
            False if there is a file already, which is left as it is.
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
                # A network file system may have lost the answer to a link that it made.
                return part.stat().st_nlink > 1
            except OSError:
                # Links are refused here.
                try:
                    stream = target.open("xb")
                except FileExistsError:
                    return False
                with stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
        return True

    def honours_create(self) -> bool:
        """Whether the storage keeps the promise of `create`; a bucket is asked once, with a file below this folder."""
        if not self.is_s3:
            return self.is_local
        key = (endpoint_url(), self.bucket)
        if key not in _honours:
            _honours[key] = _honours_create(self)
        return _honours[key]

    def list(self, *, recursive: bool = False) -> list[tuple[Location, fs.FileInfo]]:
        """Files and folders below this one, in the order of their names; empty if this folder does not exist.

        On a disk, a folder that a link leads back to is named and not entered again; a link that leads nowhere is a
        file without bytes; and a name that is not UTF-8 has lone surrogates, as everywhere in Python, which `path` of
        the `FileInfo` holds escaped.

        Raises:
            OSError: on a disk, if one of the folders cannot be listed, or a path leads through more than `DEEPEST_LINK`
            links to folders; with its name as `filename`.
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
            # pyarrow fails where a file goes between the folder's being read and the file's being looked at.
            with suppress(FileNotFoundError):
                return self.filesystem.get_file_info(selector)
        return self.filesystem.get_file_info(selector)

    def _at(self, path: str) -> Location:
        return Location(f"{self.uri.split('://', 1)[0]}://{path}")

    def make_dir(self) -> None:
        """Creates the folder and those above it; no harm if it exists. A bucket has no folders, and must exist."""
        if self.is_s3:
            # No marker: it would need the right to write above this prefix.
            _require_bucket(self)
        else:
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Deletes the file or the folder with all that is in it; no harm if there is none."""
        if self.is_s3:
            with translate_errors(self):
                return _delete(s3_client(endpoint_url(), region_of(self.bucket)), self)
        kind = self.info().type
        # Another process may be quicker.
        with suppress(FileNotFoundError), translate_errors(self):
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind != fs.FileType.NotFound:
                self.filesystem.delete_file(self.path)

    def download(self, directory: Path) -> None:
        """Copies every file of this folder into `directory`."""
        with translate_errors(self):
            fs.copy_files(self.path, str(directory), source_filesystem=self.filesystem)

    def upload(self, directory: Path, *, last: Sequence[str] = ()) -> None:
        """Copies every file of `directory` into this folder, each whole or not at all.

        Args:
            directory: a local folder.
            last: paths in it of files that follow when all others are complete, one after the other in this order.
        """
        paths = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]

        def put(path: str) -> None:
            (self / path).write_bytes(pa.memory_map(str(directory / path)).read_buffer())

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(put, (path for path in paths if path not in last)))
        for path in last:
            put(path)


def _walk(folder: str, *, recursive: bool) -> Iterator[tuple[Location, fs.FileInfo]]:
    """What lies in a folder of a disk, in any order. Folders are known by device and number, not by name."""
    pending: list[tuple[str, frozenset[tuple[int, int]], int]] = [(folder, frozenset(), 0)]
    while pending:
        path, above, links = pending.pop()
        # What another process deletes meanwhile was never there.
        with suppress(FileNotFoundError):
            status = Path(path).stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            if links > DEEPEST_LINK:
                # Folders that link to one another have more paths than a listing can hold.
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
    """What an entry of a folder is, as pyarrow would say it; None if it is gone."""
    path = os.fsencode(entry.path).decode(errors="backslashreplace")
    try:
        status = entry.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not entry.is_symlink():
            return None
        # A link that leads nowhere or in a circle, or a place that may not be entered: whoever opens it will be told.
        kind = fs.FileType.Directory if entry.is_dir(follow_symlinks=False) else fs.FileType.File
        return fs.FileInfo(path, kind, size=0 if kind == fs.FileType.File else None)
    if stat.S_ISDIR(status.st_mode):
        return fs.FileInfo(path, fs.FileType.Directory, mtime_ns=status.st_mtime_ns)
    kind = fs.FileType.File if stat.S_ISREG(status.st_mode) else fs.FileType.Unknown
    return fs.FileInfo(path, kind, size=status.st_size, mtime_ns=status.st_mtime_ns)


@contextmanager
def _part(target: Path, data: bytes | pa.Buffer) -> Iterator[Path]:
    """A complete file beside `target` under another name, which is gone after the block."""
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
            # Another writes or deletes it at this moment.
            time.sleep(random.uniform(0.1, 0.5))
    # It may be our own, by a first try whose answer was lost.
    try:
        return client.head_object(**name)["Metadata"].get("writer") == writer
    except ClientError:
        return False


def _delete(client: Any, place: Location) -> None:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=f"{place.key}/")
    keys = {place.key} | {item["Key"] for page in pages for item in page.get("Contents", [])}
    # Some stores keep a folder that was once filled until it is deleted by its name, and only when it is empty.
    folders = {key[:end] for key in keys for end in range(len(place.key) + 1, len(key) + 1) if key[end - 1] == "/"}

    def drop(key: str) -> None:
        client.delete_object(Bucket=place.bucket, Key=key)

    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(drop, keys - folders))
    for folder in sorted(folders, reverse=True):
        drop(folder)


def _honours_create(folder: Location) -> bool:
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        return probe.create(b"") and not probe.create(b"")
    finally:
        probe.delete()


def locate(text: str) -> Location:
    """The place that a path or a URI names; relative paths are taken from the current directory.

    Raises:
        UserError: if the scheme is not supported, or what follows is more or less than a bucket and a prefix.
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
