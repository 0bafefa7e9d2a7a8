"""The cache of shards on a node, with a folder in place of the bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from lungseg_ray.feed import cache as module
from lungseg_ray.feed.cache import ShardCache
from lungseg_ray.shards.format import DamagedShardError, Pair, read_pairs
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import Location, locate
from tests.helpers import write_shards

MUCH = 1 << 40


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Location, list[Shard]]:
    root = locate(str(tmp_path / "bucket"))
    index = write_shards(root, rows={"train": [3, 2, 4, 2], "val": [1]}, skip={})
    return root, index.of("train")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just started."""
    monkeypatch.setattr(module, "_state", module._State())
    module._folder.cache_clear()


def names(rows: Sequence[Pair]) -> list[tuple[str, bytes]]:
    return [(row.image_id, row.image.tobytes()) for row in rows]


def copies(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def test_each_shard_is_fetched_once(shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    root, (shard, *_) = shards
    cache, expected = ShardCache(str(tmp_path / "cache"), MUCH), names(read_pairs(root, shard, [2, 0]))
    assert names(cache.read_pairs(root, shard, [2, 0])) == expected
    (root / shard.file).delete()
    assert names(cache.read_pairs(root, shard, [2, 0])) == expected
    assert copies(tmp_path / "cache") == {shard.footer}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: data[:300] + b"?" + data[301:], lambda _: b""]
)
def test_a_damaged_copy_is_replaced(damage: object, shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    assert callable(damage)
    root, (shard, *_) = shards
    cache, expected = ShardCache(str(tmp_path / "cache"), MUCH), names(read_pairs(root, shard, [0, 1, 2]))
    cache.fetch(root, [shard], wait=True)
    copy = tmp_path / "cache" / f"{shard.footer}.parquet"
    whole = copy.read_bytes()
    copy.write_bytes(damage(whole))
    assert names(cache.read_pairs(root, shard, [0, 1, 2])) == expected
    assert names(cache.read_pairs(root, shard, [0, 1, 2])) == expected
    assert copy.read_bytes() == whole


def test_a_damaged_shard_is_named_itself(shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    root, (shard, *_) = shards
    (root / shard.file).write_bytes((root / shard.file).read_bytes()[:-50])
    with pytest.raises(DamagedShardError, match=r"bucket/train-0\.parquet: expected the shard"):
        ShardCache(str(tmp_path / "cache"), MUCH).read_pairs(root, shard, [0])


def test_the_longest_unused_makes_room(
    shards: tuple[Location, list[Shard]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCANNED_SECONDS", 0.0)
    root, train = shards
    sizes = [(root / shard.file).info().size or 0 for shard in train]
    cache = ShardCache(str(tmp_path / "cache"), sizes[0] + sizes[1] + sizes[2])
    for number in (0, 1, 2, 0, 3):
        cache.read_pairs(root, train[number], [0])
        time.sleep(0.02)
    assert copies(tmp_path / "cache") == {train[number].footer for number in (2, 0, 3)}
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= cache.most_bytes


def test_no_room(shards: tuple[Location, list[Shard]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is full, or in a folder that cannot be, shards are read where they are."""
    root, (shard, *_) = shards
    expected = names(read_pairs(root, shard, [1]))
    (tmp_path / "file").touch()
    for folder, most in (("cache", 10), ("file", MUCH), ("file/below", MUCH)):
        assert names(ShardCache(str(tmp_path / folder), most).read_pairs(root, shard, [1])) == expected
    monkeypatch.setattr(module, "_KEPT_FREE", 1.0)
    assert names(ShardCache(str(tmp_path / "cache"), MUCH).read_pairs(root, shard, [1])) == expected
    assert copies(tmp_path / "cache") == set()


def test_one_that_is_too_large_removes_no_other(shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    root, train = shards
    small, large = sorted(train, key=lambda shard: (root / shard.file).info().size or 0)[:: len(train) - 1]
    cache = ShardCache(str(tmp_path / "cache"), (root / small.file).info().size or 0)
    for shard in (small, large, small):
        assert cache.read_pairs(root, shard, [0])
        assert copies(tmp_path / "cache") == {small.footer}


def test_the_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = module._folder("")
    assert folder
    assert folder.stat().st_mode & 0o777 == 0o700
    module._folder.cache_clear()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert module._folder("") is None


def test_many_processes(shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    root, train = shards
    cache = ShardCache(str(tmp_path / "cache"), MUCH)
    expected = [names(read_pairs(root, shard, [0, 1])) for shard in train]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_read_all, [(cache, root, train)] * 8)) == [expected] * 8
    assert copies(tmp_path / "cache") == {shard.footer for shard in train}


def _read_all(task: tuple[ShardCache, Location, list[Shard]]) -> list[list[tuple[str, bytes]]]:
    cache, root, train = task
    cache.fetch(root, train, wait=False)
    return [names(cache.read_pairs(root, shard, [0, 1])) for shard in train]


_HOLDS = """
import sys, time
from pathlib import Path
from lungseg_ray.feed.cache import _locked

with _locked(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed(shards: tuple[Location, list[Shard]], tmp_path: Path) -> None:
    """Its lock is free, and what it had written in part goes after a while."""
    root, (shard, other, *_) = shards
    cache = ShardCache(str(tmp_path / "cache"), MUCH)
    lock = tmp_path / "cache" / f"{shard.footer}.lock"
    (tmp_path / "cache").mkdir()
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        cache.fetch(root, [shard], wait=False)
        cache.fetch(root, [other], wait=True)
        assert copies(tmp_path / "cache") == {other.footer, lock.stem}
        process.send_signal(signal.SIGKILL)
    part = tmp_path / "cache" / f"{shard.footer}.1-2.part"
    part.touch()
    os.utime(part, (1, 1))
    assert len(cache.read_pairs(root, shard, [0])) == 1
    module._state.counted = -1e9
    cache.fetch(root, shards[1], wait=True)
    assert copies(tmp_path / "cache") == {one.footer for one in shards[1]}
