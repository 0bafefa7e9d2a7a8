"""How often a job reads a checkpoint from a bucket: each one that it needs, once."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import ray

from lungseg_ray.run import checkpoint
from lungseg_ray.storage import locate
from tests.integration.conftest import settings_for
from tests.processes import Job
from tests.storage.object_store import FaultyProxy, ObjectStore

BUCKET = "reads"
LARGE = (checkpoint.WEIGHTS, checkpoint.AVERAGE, checkpoint.TRAINING)


def reads(seen: Iterable[str]) -> Counter[str]:
    """Reads of the large files of checkpoints, by folder and file. A file that is read in pieces counts for each."""
    found = (re.match(r"GET /\S*/(checkpoint_\d+/[^/?]+)$", request.split("?")[0]) for request in seen)
    return Counter(match[1] for match in found if match and match[1].endswith(LARGE))


@pytest.mark.faults
@pytest.mark.own_cluster
def test_training_to_its_end_and_going_on(
    object_store: ObjectStore, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    object_store.create_bucket(BUCKET)
    for key, value in object_store.environment.items():
        monkeypatch.setenv(key, value)
    tiny = settings_for(corpus, tmp_path / "shards")
    train = (
        *("--corpus.root", str(corpus), "--shards.root", str(tmp_path / "shards")),
        *("--runs.root", f"s3://{BUCKET}/runs"),
        *("--model.architecture", "Linknet", "--model.encoder", "timm-regnety_002", "--feed.size", "32"),
        *("--feed.batch", str(tiny.feed.batch), "--train.precision", "fp32", "--train.threads", "1"),
        *("--train.workers", "2", "--train.average", "0.9", "--runs.name", "run"),
        *("--evaluate.resamples", "20", "--evaluate.robustness", "0"),
    )
    with FaultyProxy(object_store) as proxy:
        with Job("train.py", *train, "--train.epochs", "3", environment=proxy.environment) as first:
            first.saw(r"epoch +1/3")
            first.signal(signal.SIGTERM)
            assert first.wait() == 143, first.output
        # A run that starts has nothing to read.
        assert reads(proxy.seen) == {}
        newest = checkpoint.list_checkpoints(locate(f"s3://{BUCKET}/runs/run"))[0]
        proxy.seen.clear()
        with Job("train.py", *train, "--train.epochs", "3", environment=proxy.environment) as again:
            assert again.wait() == 0, again.output
    # The newest checkpoint to resume from, for both workers together, and the best one to export: each file once.
    best = re.search(r"Best epoch (\d+) of 3", again.output)
    assert best is not None
    folders = {key.split("/")[0] for key in reads(proxy.seen)}
    assert newest.name in folders
    assert len(folders) == 2
    assert set(reads(proxy.seen).values()) == {1}
