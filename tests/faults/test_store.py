"""Storage that goes away, refuses, or is full."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from lungseg_ray.run import checkpoint
from tests.faults.conftest import LOST, Record
from tests.faults.small import (
    assert_whole,
    history,
    kept_steps,
    newest_step,
    now,
    place,
    shard_job,
    small_disk,
    train_job,
)
from tests.helpers import find_damage
from tests.processes import Job, wait_until
from tests.storage.object_store import FaultyProxy, Mode, ObjectStore


def saved_after(root: Path | str, name: str, job: Job, start: float) -> float:
    """Seconds from `start` until the run has another checkpoint."""
    run = place(root, name)
    before = newest_step(run)
    assert wait_until(lambda: newest_step(run) > before or job.process.poll() is not None, seconds=180), job.output
    return now() - start


class TestObjectStore:
    def test_stopped_for_20_seconds(self, store: ObjectStore, record: Record) -> None:
        bucket = "s3://lungs/stopped"
        with shard_job(f"{bucket}/shards", environment=store.environment) as job:
            assert job.wait() == 0, job.output
        with train_job(bucket, "run", f"{bucket}/shards", epochs=10, environment=store.environment) as job:
            job.saw(r"^epoch   1/10")
            store.stop()
            time.sleep(20)
            start = now()
            store.start()
            job.saw("answers again", seconds=120)
            seconds = now() - start
            assert job.wait() == 0, job.output
        assert job.count("^Training from") == 1
        record("the object store is stopped for 20 s", lost="nothing: training continues meanwhile", seconds=seconds)

    @pytest.mark.parametrize(("mode", "status"), [("busy", "503"), ("denied", "403")])
    def test_refuses_for_20_seconds(self, mode: Mode, status: str, store: ObjectStore, record: Record) -> None:
        bucket = f"s3://lungs/refused-{status}"
        with FaultyProxy(store) as proxy:
            environment = {**store.environment, "AWS_ENDPOINT_URL": proxy.url}
            with shard_job(f"{bucket}/shards", environment=environment) as job:
                assert job.wait() == 0, job.output
            with train_job(bucket, "run", f"{bucket}/shards", epochs=10, environment=environment) as job:
                job.saw(r"^epoch   1/10")
                proxy.mode = mode
                time.sleep(20)
                start = now()
                proxy.mode = "pass"
                job.saw("answers again", seconds=120)
                seconds = now() - start
                assert job.wait() == 0, job.output
            assert job.count("^Training from") == 1
            assert proxy.faults > 0
        record(
            f"the object store answers {status} for 20 s", lost="nothing: training continues meanwhile", seconds=seconds
        )


class TestFullDisk:
    def test_while_shards_are_written(self, tmp_path: Path, record: Record) -> None:
        with small_disk(tmp_path / "disk", megabytes=1) as disk:
            # 60 phantoms of 256 px take more than 4 MB.
            more = ("--corpus.phantom.size", "256")
            with Job("shard.py", "--shards.root", str(disk / "shards"), *more) as job:
                assert job.wait() == 1, job.output
            assert "No space left on device" in job.output
            assert "Traceback" not in job.output
            assert not list((disk / "shards").glob(".*.part"))
            assert not (disk / "shards/index.json").exists()
        record(
            "the disk is full while shards are written: exit 1", lost="nothing: the same command resumes", seconds=None
        )

    def test_while_checkpoints_are_written(self, shards: Path, tmp_path: Path, record: Record) -> None:
        with small_disk(tmp_path / "disk", megabytes=300) as disk:
            ballast = disk / "ballast"
            run = place(disk, "run")
            with train_job(disk, "run", shards, epochs=10) as job:
                job.saw(r"^epoch   1/10")
                # What is left is less than one checkpoint.
                with suppress(OSError), ballast.open("wb", buffering=0) as stream:
                    while stream.write(bytes(1 << 16)):
                        pass
                job.saw("No space left on device", seconds=60)
                before = kept_steps(run)
                start = now()
                ballast.unlink()
                job.saw("answers again", seconds=60)
                seconds = saved_after(disk, "run", job, start)
                assert job.wait() == 0, job.output
            assert before
            assert_whole(run, epochs=10)
        record(
            "the disk is full while checkpoints are written, and then has room again", lost="nothing", seconds=seconds
        )

    def test_and_stays_full(self, shards: Path, tmp_path: Path, record: Record) -> None:
        # One checkpoint of this model takes 48 MB or so.
        with small_disk(tmp_path / "disk", megabytes=80) as disk:
            run = place(disk, "run")
            with train_job(disk, "run", shards, "--storage.patience_seconds", "5", epochs=10) as job:
                assert job.wait() == 1, job.output
            assert "No space left on device" in job.output
            assert "Traceback" not in job.output
            (good,) = [one for one in checkpoint.list_checkpoints(run) if find_damage(one) is None]
            assert f"The last good checkpoint: {good}" in job.output
            assert history(run) == []
        record("the disk stays full: exit 1 after `storage.patience_seconds`", lost=LOST, seconds=None)
