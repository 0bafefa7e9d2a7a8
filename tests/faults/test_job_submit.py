"""Jobs submitted to a cluster, with the package shipped in the working directory alone, all data in a bucket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.conftest import Record
from tests.faults.small import CORPUS, SIZE, Cluster, newest_step, place
from tests.helpers import ROOT
from tests.processes import wait_until
from tests.storage.object_store import ObjectStore

BUCKET = "s3://lungs/jobs"
TRAIN = (
    *("python", "jobs/train.py", "--runs.root", BUCKET, "--runs.name", "run", "--shards.root", f"{BUCKET}/shards"),
    *(*SIZE, "--train.epochs", "30", "--train.workers", "2"),
)


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """Between these tests the cluster stays, and keeps workers for the next job."""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with every dependency of the package, but without the package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin/python"
    # An editable install is found through a .pth file, which counts only where it lies in site-packages itself.
    gone = subprocess.run([python, "-c", "import lungseg_ray"], cwd="/", capture_output=True, text=True, check=False)
    assert "No module named 'lungseg_ray'" in gone.stderr
    return python


@pytest.fixture(scope="module")
def cluster(bare_python: Path, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), cpus=3, environment=store.environment, python=bare_python) as one:
        yield one


def ray_job(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A `ray job` command as a user gives it, with the token and without any credentials of the bucket."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    token = {key: value for key, value in cluster.environment.items() if key.startswith("RAY_AUTH")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            arguments[0],
            "--address",
            cluster.dashboard,
            *arguments[1:],
        ],
        cwd=ROOT,
        env={**environment, **token, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )


def submit(cluster: Cluster, *entrypoint: str, name: str | None = None) -> subprocess.CompletedProcess[str]:
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--working-dir", ".", "--runtime-env-json", patience]
    if name:
        options += ["--submission-id", name, "--no-wait"]
    return ray_job(cluster, "submit", *options, "--", *entrypoint)


def test_shard_train_stop_go_on_evaluate_predict(
    cluster: Cluster,
    store: ObjectStore,
    tmp_path: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in store.environment.items():
        monkeypatch.setenv(key, value)
    transcript = []
    made = submit(cluster, "python", "jobs/shard.py", "--shards.root", f"{BUCKET}/shards", *CORPUS)
    transcript.append(made.stdout)
    assert made.returncode == 0, made.stdout

    run = place(BUCKET, "run")
    started = submit(cluster, *TRAIN, name="first")
    assert started.returncode == 0, started.stdout
    assert wait_until(lambda: newest_step(run) >= 24, seconds=180), ray_job(cluster, "logs", "first").stdout
    stopped = ray_job(cluster, "stop", "first")
    logs = ray_job(cluster, "logs", "first").stdout
    transcript += [logs, stopped.stdout]
    assert "Stopped after step" in logs, logs
    step = int(logs.split("Stopped after step ")[1].split(";")[0])
    assert newest_step(run) == step

    again = submit(cluster, *TRAIN)
    transcript.append(again.stdout)
    assert again.returncode == 0, again.stdout
    assert "Resuming the run" in again.stdout
    assert len(re.findall(r"^epoch +\d+/30 ", again.stdout, re.MULTILINE)) == 30 - (step // 12)
    assert "Running Dataset" not in again.stdout
    assert (run / "summary.json").exists()

    image = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 96), np.uint8)).save(image)
    (place(BUCKET, "images") / "x.png").write_bytes(image.read_bytes())
    measured = submit(cluster, "python", "jobs/evaluate.py", "--run", f"{BUCKET}/run", "--out", f"{BUCKET}/figures")
    assert measured.returncode == 0, measured.stdout
    assert (place(BUCKET, "figures") / "evaluation.json").exists()
    seen = submit(
        cluster,
        *("python", "jobs/predict.py", "--run", f"{BUCKET}/run", "--images", f"{BUCKET}/images"),
        *("--out", f"{BUCKET}/masks"),
    )
    transcript += [measured.stdout, seen.stdout]
    assert seen.returncode == 0, seen.stdout
    assert (place(BUCKET, "masks") / "masks/x.png.png").exists()
    (tmp_path / "transcript.txt").write_text("\n".join(transcript))
    with capsys.disabled():
        print(f"\ntranscript: {tmp_path / 'transcript.txt'}")
    record("`ray job stop`: saves; resumed with the same job", lost="nothing", seconds=None)


def test_a_mistake_fails_the_job_with_a_sentence(cluster: Cluster) -> None:
    made = submit(cluster, "python", "jobs/train.py", "--train.epoch", "3")
    assert made.returncode == 1
    assert "--train.epoch: there is no such setting. Did you mean train.epochs?" in made.stdout
    assert "Traceback" not in made.stdout


def test_places_that_would_be_deleted_are_refused(cluster: Cluster) -> None:
    made = submit(cluster, "python", "jobs/train.py", *SIZE)
    assert made.returncode == 1
    assert "runs/local: a submitted job runs in a copy of your folder that Ray deletes" in made.stdout
