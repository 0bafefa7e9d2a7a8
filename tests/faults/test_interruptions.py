"""Ctrl-C and SIGTERM, once and several times, at moments from the start of a job to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.faults.small import SIZE, shard_job, train_job
from tests.processes import Job, ray_processes, wait_until

INT, TERM = signal.SIGINT, signal.SIGTERM
SIGNALS = [[INT], [TERM], [INT, INT], [TERM, TERM], [INT] * 6]
PAUSE_SECONDS = 0.3
"""Seconds between the signals of a series."""
HUNG_SECONDS = 100.0


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interrupted")
    with train_job(root, "run", shards, epochs=1, workers=1) as job:
        assert job.wait() == 0, job.output
    return root / "run"


def commands(finished: Path, shards: Path, out: Path) -> dict[str, Callable[[], Job]]:
    """How each job is started, with nothing done before."""
    corpus = ("--corpus.phantom.count", "60", "--corpus.phantom.size", "96")
    sweep = ("--sweep.space", '{"optim.lr": {"grid": [0.001, 0.002]}}', "--train.epochs", "1", "--sweep.seeds", "1")
    return {
        "shard": lambda: shard_job(str(out)),
        "train": lambda: train_job(out, "run", shards, epochs=2, workers=1),
        "tune": lambda: Job(
            "tune.py", "--runs.root", str(out), "--runs.name", "sweep", "--shards.root", str(shards), *SIZE, *sweep
        ),
        "evaluate": lambda: Job("evaluate.py", "--run", str(finished), "--split", "all", "--out", str(out)),
        "predict": lambda: Job(
            "predict.py", "--run", str(finished), "--images", str(finished.parent / "images"), "--out", str(out)
        ),
        "audit": lambda: Job("shard.py", "--audit", "true", "--shards.root", str(out), *corpus),
    }


@pytest.mark.parametrize("name", ["shard", "train", "tune", "evaluate", "predict", "audit"])
def test_interrupted(name: str, finished: Path, shards: Path, tmp_path: Path, record: Record) -> None:
    """Each ends with the code of its signal, leaves nothing that runs or is half-written, and is gone on with."""
    images = finished.parent / "images"
    if not images.exists():
        images.mkdir()
        for number in range(40):
            (images / f"{number}.png").write_bytes((finished / "curves.png").read_bytes())
    start = commands(finished, shards, tmp_path / "whole")[name]
    with start() as job:
        began = time.monotonic()
        assert job.wait() == 0, job.output
        whole = time.monotonic() - began
    before, worst = ray_processes(), 0.0
    start = commands(finished, shards, tmp_path / "out")[name]
    for number, signals in enumerate(SIGNALS):
        with start() as job:
            time.sleep(whole * (0.1 + 0.18 * number))
            sent = time.monotonic()
            for one in signals:
                if job.process.poll() is None:
                    job.signal(one)
                    time.sleep(PAUSE_SECONDS)
            code = job.wait(seconds=HUNG_SECONDS)
            worst = max(worst, time.monotonic() - sent - PAUSE_SECONDS * (len(signals) - 1))
            assert code in (0, 128 + signals[0]), (signals, code, job.output)
            assert "Traceback" not in job.output, job.output
            assert wait_until(lambda: ray_processes() <= before, seconds=20), (signals, job.output)
        assert [path for path in tmp_path.rglob("*.part*") if path.is_file()] == []
    with start() as job:
        assert job.wait() == 0, job.output
    record(
        f"`{name}`: Ctrl-C and SIGTERM, once, twice, six times: ends within {worst:.0f} s", lost="nothing", seconds=None
    )
