"""Locations of files and folders on a local disk or in a bucket, with operations to read, list and write them.

No other module of the project parses URIs.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
from pyarrow import fs

from lungseg_ray.errors import UserError
from lungseg_ray.storage import local
from lungseg_ray.storage.bucket_errors import require_bucket, translate_errors
from lungseg_ray.storage.s3 import REQUESTS, create_object, delete_objects, endpoint_url, region_of, s3_filesystem

SCHEMES = ("s3",)

# By endpoint and bucket: what `supports_exclusive_create` found.
_exclusive_create: dict[tuple[str, str], bool] = {}


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


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
                require_bucket(self)
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
            return local.read(Path(self.path))
        # The size of an input file is known, so that it is read in one request. A stream is read in pieces of 256 KB.
        with translate_errors(self), self.filesystem.open_input_file(self.path) as file:
            return file.read()

    def read_text(self) -> str:
        """Reads the whole file as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Writes the whole file atomically: a reader sees the old content or the new content, never a part of it."""
        if self.is_local:
            return local.write(Path(self.path), data)
        # The data is written in one call, since a stream that is closed half-way leaves half a file.
        with translate_errors(self), self.filesystem.open_output_stream(self.path) as stream:
            stream.write(data)

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
        if self.is_local:
            return local.create(Path(self.path), data)
        if self.is_s3:
            with translate_errors(self):
                return create_object(self.bucket, self.key, data)
        if self.exists():
            return False
        self.write_bytes(data)
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
            files = sorted(local.walk(self.path, recursive=recursive), key=lambda file: file[0])
            return [(Location(path), info) for path, info in files]
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        with translate_errors(self):
            found = sorted(self._listed(selector), key=lambda info: info.path)
            if not found:
                require_bucket(self)
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
            require_bucket(self)
        else:
            self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Deletes the file, or the folder with its whole content; does nothing if neither exists."""
        if self.is_s3:
            with translate_errors(self):
                return delete_objects(self.bucket, self.key)
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
            `s3://BUCKET/PREFIX`.

    Returns:
        The location.

    Raises:
        UserError: If the scheme is not supported, or if something other than a bucket and a prefix follows it.
    """
    if "://" not in text:
        try:
            return Location(str(Path(text).expanduser().absolute()))
        except RuntimeError as error:
            raise UserError(f"{text}: this home folder is not known ({error}). Write the whole path.") from None
    scheme, rest = text.split("://", 1)
    if scheme == "file":
        return Location(url2pathname(urlsplit(text).path))
    if scheme not in SCHEMES:
        raise UserError(
            f"{text}: expected a path or s3://BUCKET/PREFIX, found {scheme}://. Other stores are not supported: "
            "the lock that keeps a run to one driver needs S3. Copy the data to an S3 store, or to a disk that all "
            "nodes mount."
        )
    if "@" in rest or "?" in rest:
        raise UserError(
            f"{scheme}://...: expected a bucket and a prefix alone, found '@' or '?'. Keys and endpoints come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL), so that they are written nowhere."
        )
    place = Location(text.rstrip("/"))
    if not rest.strip("/") or "//" in rest.rstrip("/") or rest.startswith("/"):
        raise UserError(f"{text}: expected {scheme}://BUCKET/PREFIX, and nothing empty between two slashes.")
    return place
