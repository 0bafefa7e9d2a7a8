"""Ctrl-C, SIGTERM and SIGHUP, once and several times, at moments from the start of each job to its end."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.faults.small import CORPUS, SIZE, shard_job, train_job
from tests.processes import Job, ray_processes, wait_until

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SERIES = [[INT], [TERM], [HUP], [INT, INT], [TERM, TERM], [INT] * 6]
PAUSE_SECONDS = 0.3
"""Seconds between the signals of a series."""
HUNG_SECONDS = 100.0
EXIT_SECONDS = 20.0
"""The processes of Ray are gone this long after the job."""


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with images beside it."""
    root = tmp_path_factory.mktemp("interrupted")
    with train_job(root, "run", shards, epochs=1, workers=1) as job:
        assert job.wait() == 0, job.output
    images = root / "images"
    images.mkdir()
    for number in range(40):
        (images / f"{number}.png").write_bytes((root / "run/curves.png").read_bytes())
    return root / "run"


def commands(finished: Path, shards: Path, out: Path) -> dict[str, Callable[[], Job]]:
    """How each job is started, with nothing done before."""
    run, images = ("--run", str(finished)), str(finished.parent / "images")
    sweep = ("--sweep.space", '{"optim.lr": {"grid": [0.001, 0.002]}}', "--train.epochs", "1", "--sweep.seeds", "1")
    at = ("--runs.root", str(out), "--runs.name", "sweep", "--shards.root", str(shards))
    return {
        "shard": lambda: shard_job(str(out)),
        "train": lambda: train_job(out, "run", shards, epochs=2, workers=1),
        "tune": lambda: Job("tune.py", *at, *SIZE, *sweep),
        "evaluate": lambda: Job("evaluate.py", *run, "--split", "all", "--out", str(out)),
        "predict": lambda: Job("predict.py", *run, "--images", images, "--out", str(out)),
        "audit": lambda: Job("shard.py", "--audit", "--shards.root", str(out), *CORPUS),
        "report": lambda: Job("report.py", *run),
    }


def send(job: Job, number: signal.Signals) -> None:
    """Sends a signal as it is sent in life: by a terminal to the job and its children, else to the job alone."""
    with suppress(ProcessLookupError):
        if number == TERM:
            job.signal(number)
        else:
            os.killpg(job.process.pid, number)


@pytest.mark.parametrize("name", ["shard", "train", "tune", "evaluate", "predict", "audit", "report"])
def test_interrupted(name: str, finished: Path, shards: Path, tmp_path: Path, record: Record) -> None:
    """Each ends with the code of its signal, leaves nothing that runs or is half-written, and is gone on with."""
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    order = random.Random(seed).sample(SERIES, len(SERIES))
    with commands(finished, shards, tmp_path / "whole")[name]() as job:
        began = time.monotonic()
        assert job.wait() == 0, job.output
        whole = time.monotonic() - began
    before, slowest = ray_processes(), 0.0
    out = tmp_path / "out"
    for number, series in enumerate(order):
        with commands(finished, shards, out)[name]() as job:
            started = time.monotonic()
            # Ctrl-C in the first tenth of a second meets Python itself.
            time.sleep(max(0.2, whole * (0.08 + 0.16 * number)))
            sent = time.monotonic()
            for one in series:
                send(job, one)
                time.sleep(PAUSE_SECONDS)
            case = f"seed {seed}, {[one.name for one in series]} after {sent - started:.1f} of {whole:.1f} s"
            code = job.wait(seconds=HUNG_SECONDS)
            slowest = max(slowest, time.monotonic() - sent - PAUSE_SECONDS * len(series))
            assert code in (0, 128 + (INT if series[0] == INT else TERM)), (case, code, job.output)
            assert "Traceback" not in job.output, (case, job.output)
            assert "*** " not in job.output, (case, job.output)
            assert wait_until(lambda: ray_processes() <= before, seconds=EXIT_SECONDS), (case, job.output)
        assert [path for path in tmp_path.rglob("*.part*") if path.is_file()] == [], (case, job.output)
        if code == 0:
            out = tmp_path / f"out{number}"
    with commands(finished, shards, out)[name]() as job:
        assert job.wait() == 0, job.output
    record(
        f"`{name}`: Ctrl-C, SIGTERM, a closed terminal, once, twice, six times: ends within {slowest:.0f} s",
        lost="nothing",
        seconds=None,
    )
