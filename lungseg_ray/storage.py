"""A URI becomes a place that can be read, listed and written whole; nothing else in the project parses URIs."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
from pyarrow import fs

from lungseg_ray.errors import UserError

SCHEMES = ("s3", "gs")


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


@dataclass(frozen=True)
class Location:
    """A file or a folder, on a disk or in a bucket.

    It is pickled as its URI alone: every process opens the file system from its own environment, so that no
    credential travels.
    """

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine's file system."""
        return self.uri.startswith("/")

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system that holds this place."""
        if self.is_local:
            return _filesystem("file:///")
        scheme, rest = self.uri.split("://", 1)
        return _filesystem(f"{scheme}://{rest.split('/', 1)[0]}")

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
        return self.filesystem.get_file_info(self.path)

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
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def read_text(self) -> str:
        """The whole file as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Writes the whole file so that a reader sees the old content or the new, never a part."""
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def write_text(self, text: str) -> None:
        """Writes UTF-8 text, whole or not at all."""
        self.write_bytes(text.encode())

    def list(self, *, recursive: bool = False) -> list[tuple[Location, fs.FileInfo]]:
        """Files and folders below this one, in the order of their names; empty if this folder does not exist."""
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        found = sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)
        return [(self._at(info.path), info) for info in found]

    def _at(self, path: str) -> Location:
        return Location(path if self.is_local else f"{self.uri.split('://', 1)[0]}://{path}")

    def make_dir(self) -> None:
        """Creates the folder and those above it; no harm if it exists."""
        self.filesystem.create_dir(self.path, recursive=True)

    def delete(self) -> None:
        """Deletes the file or the folder; no harm if there is none."""
        kind = self.info().type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)

    def download(self, directory: Path) -> None:
        """Copies every file of this folder into `directory`."""
        fs.copy_files(self.path, str(directory), source_filesystem=self.filesystem)

    def upload(self, directory: Path) -> None:
        """Copies every file of `directory` into this folder."""
        self.make_dir()
        fs.copy_files(str(directory), self.path, destination_filesystem=self.filesystem)


def locate(text: str) -> Location:
    """The place that a path or a URI names; relative paths are taken from the current directory.

    Raises:
        UserError: if the scheme is one that is not supported.
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
    return Location(text.rstrip("/"))
