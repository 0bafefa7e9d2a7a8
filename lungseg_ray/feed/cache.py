"""A cache of whole shards on the disk of a node, for shards that lie in a bucket: each is fetched once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lungseg_ray.shards.format import DamagedShardError, Pair, forget_open_shards, read_pairs
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import REQUESTS, Location

_NAME = "lungseg-ray-shards-"
_ON_DISK = "/var/tmp"
_KEPT_FREE = 0.05
"""The cache leaves this share of the disk free."""
_SCANNED_SECONDS = 5.0
"""The size of the cache is counted again after this time."""
_SEEN_SECONDS = 5.0
"""The use of a copy is noted again after this time."""
_LEFT_SECONDS = 3600.0
"""Parts of files that are older than this were left by a process that was killed."""
_SUFFIX, _PART = ".parquet", ".part"


@dataclass(frozen=True)
class ShardCache:
    """Copies of shards on the local disk, shared by all processes of a user on a node.

    A copy has the hash of the shard's footer as its name, so that it is that of all runs that use the shard. It is
    checked when it is read, as every shard. Those that were not used for the longest time make room for others.

    Attributes:
        folder: The folder; empty for one of the user's own in `TMPDIR` or /var/tmp.
        most_bytes: The maximum size of all copies, bytes.
    """

    folder: str
    most_bytes: int

    def read_pairs(self, root: Location, shard: Shard, rows: Sequence[int]) -> list[Pair]:
        """Reads rows of a shard as `shards.format.read_pairs` does, from the copy if there is one.

        Args:
            root: The folder of the shards.
            shard: The shard.
            rows: The numbers of the rows within the shard.

        Raises:
            DamagedShardError: If the shard is missing, damaged, or another one than the index describes.
            OSError: If it cannot be read; a `StorageError` for a bucket.
        """
        copy = self._copy(root, shard, wait=True)
        if copy:
            try:
                return read_pairs(Location(str(copy.parent)), shard.model_copy(update={"file": copy.name}), rows)
            except (DamagedShardError, OSError):
                # The copy was damaged, or has just made room for another.
                copy.unlink(missing_ok=True)
                _seen.pop(copy, None)
                forget_open_shards()
        return read_pairs(root, shard, rows)

    def fetch(self, root: Location, shards: Sequence[Shard], *, wait: bool) -> None:
        """Fetches the shards of which there is no copy yet, several at a time.

        Args:
            root: The folder of the shards.
            shards: The shards.
            wait: Whether to wait for them.

        Raises:
            OSError: If one that is waited for cannot be read; a `StorageError` for a bucket.
        """
        folder = _folder(self.folder)
        shards = [shard for shard in shards if folder is None or not _used(_place(folder, shard))]
        if wait:
            list(_pool().map(lambda shard: self._copy(root, shard, wait=True), shards))
            return
        for shard in shards:
            if shard.footer not in _coming:
                _coming.add(shard.footer)
                _pool().submit(self._fetch_later, root, shard)

    def _fetch_later(self, root: Location, shard: Shard) -> None:
        # Whoever needs the shard meets the error again.
        with suppress(OSError):
            self._copy(root, shard, wait=False)
        _coming.discard(shard.footer)

    def _copy(self, root: Location, shard: Shard, *, wait: bool) -> Path | None:
        """Returns the copy of a shard, fetched if it is not there; None if there is no room for it.

        Without `wait`, it also returns None if another process is fetching it.
        """
        folder = _folder(self.folder)
        if folder is None:
            return None
        copy = _place(folder, shard)
        if _used(copy):
            return copy
        with _locked(copy.with_suffix(".lock"), wait=wait) as is_mine:
            if not is_mine:
                return None
            if _used(copy):
                return copy
            try:
                data = (root / shard.file).read_bytes()
            except FileNotFoundError:
                return None
            try:
                if not self._has_room(folder, len(data)):
                    return None
                _write(copy, data)
            except OSError:
                return None
            return copy

    def _has_room(self, folder: Path, size: int) -> bool:
        """Removes the copies that were not used for the longest time until there is room for another."""
        with _state.lock:
            now = time.monotonic()
            if now > _state.counted + _SCANNED_SECONDS:
                _state.size, _state.counted = sum(found for _, found, _ in _copies(folder)), now
            disk = shutil.disk_usage(folder)
            excess = max(_state.size + size - self.most_bytes, size + int(_KEPT_FREE * disk.total) - disk.free)
            if excess > _state.size:
                # To remove all of them would not suffice.
                return False
            if excess > 0:
                for _, found, path in sorted(_copies(folder)):
                    if excess <= 0:
                        break
                    path.unlink(missing_ok=True)
                    _seen.pop(path, None)
                    _state.size -= found
                    excess -= found
            if excess <= 0:
                _state.size += size
            return excess <= 0


class _State:
    """What this process knows about the cache."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.size = 0
        self.counted = -_SCANNED_SECONDS


_state = _State()
_coming: set[str] = set()
_seen: dict[Path, float] = {}
"""When this process has last noted the use of a copy."""


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="shards")


@lru_cache(maxsize=4)
def _folder(name: str) -> Path | None:
    """Returns the folder of the cache, made if necessary; None if there can be none that is this user's own."""
    # In many systems, /tmp is in memory.
    usual = (
        _ON_DISK if not os.environ.get("TMPDIR") and os.access(_ON_DISK, os.W_OK | os.X_OK) else tempfile.gettempdir()
    )
    place = Path(name) if name else Path(usual) / f"{_NAME}{os.getuid()}"
    try:
        place.mkdir(mode=0o700, parents=bool(name), exist_ok=True)
        mine = not place.is_symlink() and place.stat().st_uid == os.getuid()
    except OSError:
        return None
    return place if mine or name else None


def _copies(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yields the time of the last use of each copy, its size and its path. Removes what killed processes left."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat()
                if entry.name.endswith(_SUFFIX):
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)
                elif entry.name.endswith(_PART) and time.time() > status.st_mtime + _LEFT_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)


def _place(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.footer}{_SUFFIX}"


def _used(copy: Path) -> bool:
    """Notes that a copy is used; returns whether it is there, or was there `_SEEN_SECONDS` ago."""
    now = time.monotonic()
    if now < _seen.get(copy, -_SEEN_SECONDS) + _SEEN_SECONDS:
        return True
    try:
        os.utime(copy)
    except OSError:
        return False
    _seen[copy] = now
    return True


def _write(copy: Path, data: bytes) -> None:
    part = copy.with_suffix(f".{os.getpid()}-{threading.get_ident()}{_PART}")
    try:
        part.write_bytes(data)
        part.replace(copy)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _locked(place: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock among the processes of a node, which the system releases if this one is killed."""
    try:
        number = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        # A full disk, or one that cannot be written: there will be no copy, which needs no lock.
        yield True
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(number)
        yield False
        return
    try:
        yield True
    finally:
        # Others may wait for the lock of a file without a name; they will find the copy.
        place.unlink(missing_ok=True)
        os.close(number)
