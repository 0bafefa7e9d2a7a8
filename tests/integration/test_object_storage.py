"""The whole way on a real S3 server: corpus, shards, run, evaluation and predictions lie in a bucket."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray

from lungseg_ray.run import checkpoint
from lungseg_ray.storage import locate
from tests.conftest import write_pairs
from tests.helpers import find_damage
from tests.processes import Job
from tests.storage.object_store import ObjectStore

BUCKET = "s3://whole-way"
RAY_LOGS = Path("/tmp/ray")


@pytest.fixture(scope="session")
def made(object_store: ObjectStore) -> str:
    object_store.create_bucket(BUCKET.removeprefix("s3://"))
    return BUCKET


@pytest.fixture
def bucket(object_store: ObjectStore, made: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for key, value in object_store.environment.items():
        monkeypatch.setenv(key, value)
    return made


@pytest.mark.own_cluster
def test_everything_in_a_bucket_and_no_credential_anywhere(
    object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    ray.shutdown()
    began = time.time()
    locate(f"{bucket}/corpus").upload(write_pairs(tmp_path / "corpus", 32))
    train = (
        *("--corpus.root", f"{bucket}/corpus", "--shards.root", f"{bucket}/shards", "--shards.rows", "7"),
        *("--runs.root", f"{bucket}/runs", "--runs.name", "one", "--feed.size", "32", "--feed.batch", "4"),
        *("--model.architecture", "Linknet", "--model.encoder", "timm-regnety_002", "--train.precision", "fp32"),
        *("--train.epochs", "2", "--checkpoint.every_steps", "3"),
        *("--evaluate.resamples", "20", "--evaluate.robustness", "0", "--evaluate.confidence", "false"),
    )
    outputs = []
    with Job("train.py", *train, environment=object_store.environment) as job:
        assert job.wait() == 0, job.output
        outputs.append(job.output)
    run = locate(f"{bucket}/runs/one")
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["checkpoint_wait"]) >= 0 for row in rows)
    assert all("checkpoint wait" in line for _, line in job.lines if line.startswith("epoch"))
    assert [find_damage(place) for place in checkpoint.list_checkpoints(run)] == [None] * len(
        checkpoint.list_checkpoints(run)
    )
    names = {place.name for place, _ in run.list()}
    assert {"config.yaml", "environment.json", "history.csv", "summary.json", "curves.png", "best"} <= names
    (lease,) = (name for name in names if name.startswith("lease"))
    assert json.loads((run / lease).read_text())["ended"]

    # The same command again finds it finished, and asks Ray for nothing.
    with Job("train.py", *train, environment=object_store.environment) as job:
        assert job.wait() == 0, job.output
        assert "is finished; nothing to do" in job.output

    pixels = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)
    (locate(f"{bucket}/images") / "a.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    evaluate = ("--run", str(run), "--out", f"{bucket}/figures")
    predict = ("--run", str(run), "--images", f"{bucket}/images", "--out", f"{bucket}/masks")
    for script, arguments in (("evaluate.py", evaluate), ("predict.py", predict)):
        with Job(script, *arguments, environment=object_store.environment) as job:
            assert job.wait() == 0, job.output
            outputs.append(job.output)
    test = json.loads((run / "evaluation/test/evaluation.json").read_text())
    assert json.loads((locate(f"{bucket}/figures") / "evaluation.json").read_text())["dice"]["mean"] == pytest.approx(
        test["dice"]["mean"]
    )
    assert (locate(f"{bucket}/masks") / "masks/a.png.png").exists()

    # A checkpoint damaged in the bucket is passed over.
    newest = checkpoint.list_checkpoints(run)[0]
    data = bytearray((newest / checkpoint.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / checkpoint.WEIGHTS).write_bytes(bytes(data))
    found = checkpoint.find_newest(run, any_finished=True, read=checkpoint.read_checkpoint)
    assert found.place is not None
    assert found.place.name < newest.name
    assert len(found.passed_over) == 1

    written = [place.read_bytes() for place, info in locate(bucket).list(recursive=True) if info.is_file]
    logs = [
        path.read_bytes()
        for path in RAY_LOGS.glob("session_2*/**/*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= began
    ]
    assert len(written) > 30
    assert logs
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        secret = object_store.environment[name]
        assert secret not in "\n".join(outputs)
        assert not [data for data in (*written, *logs) if secret.encode() in data], name


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "of-somebody-else"}, "the signature does not match"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "nothing answers at http://127.0.0.1:9"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_a_sentence(
    object_store: ObjectStore, bucket: str, changed: dict[str, str], said: str
) -> None:
    place = f"{bucket}/none"
    with Job(
        "train.py", "--shards.root", place, "--runs.root", place, environment={**object_store.environment, **changed}
    ) as job:
        assert job.wait(seconds=60) == 1, job.output
    assert said in job.output
    assert "Traceback" not in job.output
    assert len(job.lines) == 1
