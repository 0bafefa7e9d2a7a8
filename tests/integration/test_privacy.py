"""A whole run on DICOM files that say whose they are: nothing of it is found in anything that was written."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from rich.console import Console

from lungseg_ray.config import EvaluateJob, PredictJob
from lungseg_ray.corpus.layouts.dicom import find_path
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.summary import figures_table
from lungseg_ray.jobs.audit import audit, audit_summary
from lungseg_ray.jobs.evaluate import evaluate_run
from lungseg_ray.jobs.predict import describe_predictions, predict
from lungseg_ray.jobs.train import train
from lungseg_ray.shards.build import shard
from lungseg_ray.shards.describe import Outcome, describe_outcome
from lungseg_ray.shards.format import read_contents
from lungseg_ray.storage import locate
from tests.corpus.dicoms import IDENTITY, chest, write_tree
from tests.helpers import make_settings

IMAGES = 24
SALT = "a salt of this test alone"


@dataclass
class Ran:
    corpus: Path
    folder: Path
    outcome: Outcome
    output: str


@pytest.fixture(scope="module")
def ran(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Audit, shards, training, evaluation of the run and of the corpus, prediction: all that a user can do."""
    corpus = write_tree(tmp_path_factory.mktemp("archive") / "tree", IMAGES)
    folder = tmp_path_factory.mktemp("written")
    settings = make_settings(
        corpus={"root": str(corpus)},
        shards={"root": str(folder / "shards"), "max_set_aside": 0.5},
        feed={"size": 64},
        train={"epochs": 1},
        evaluate={"resamples": 20, "robustness": 0},
        runs={"root": str(folder / "runs"), "name": "run"},
    )
    console = Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGSEG_SALT", SALT)
        console.print(audit_summary(*audit(settings)))
        outcome = shard(settings)
        console.print(describe_outcome(outcome))
        train(settings, console, started=0.0)
        place = str(folder / "runs/run")
        quick = {"run": place, "evaluate": settings.evaluate}
        for measured in (EvaluateJob(**quick), EvaluateJob(**quick, corpus=settings.corpus)):
            result, out = evaluate_run(measured)
            console.print(figures_table(result), str(out))
        # Prediction names masks after the images, so that their names are neutral here.
        new = folder.parent / "new"
        new.mkdir(exist_ok=True)
        image, _ = draw(IMAGES, seed=0, size=64)
        (new / "a.dcm").write_bytes(chest(image))
        (new / "b.dcm").write_bytes(chest(image)[:-100])
        job = PredictJob(run=place, images=str(new), out=str(folder / "predictions"), overlay=True)
        console.print(describe_predictions(predict(job), job))
    return Ran(corpus, folder, outcome, console.file.getvalue())  # type: ignore[attr-defined]


def words() -> list[bytes]:
    """Each value, and its parts, as it may stand in a file."""
    parts = {part for value in IDENTITY.values() for part in (value, *value.split("^"))}
    return [part.encode() for part in sorted(parts)] + [SALT.encode()]


def test_nothing_that_was_written_says_whose_it_is(ran: Ran) -> None:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    files = [path for folder in (ran.folder, logs) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 40
    found = {
        (str(path), word)
        for path in files
        for word in words()
        if word in path.read_bytes() or word.decode() in str(path)
    }
    assert not found
    assert not [word for word in words() if word.decode() in ran.output]


def test_what_is_looked_for_can_be_found(ran: Ran) -> None:
    # The corpus itself holds every word but the salt.
    held = b"".join(path.read_bytes() for path in ran.corpus.rglob("*.dcm"))
    assert [word for word in words() if word not in held] == [SALT.encode()]


def test_patients_and_studies_have_keys(ran: Ran) -> None:
    rows = [row for one in ran.outcome.index.shards for row in read_contents(ran.outcome.root / one.file).rows]
    assert len(rows) == IMAGES - 2
    assert len({row["patient_id"] for row in rows}) == IMAGES // 2
    groups = [dict(row["groups"]) for row in rows]
    assert len({group["study_key"] for group in groups}) == len(rows)
    assert {group["sex"] for group in groups} == {"F"}
    assert all(row["spacing"] == [0.2, 0.2] for row in rows)


def test_what_was_set_aside_can_be_found_again(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", SALT)
    by_reason = {one.reason: one for one in ran.outcome.set_aside}
    assert set(by_reason) == {"unreadable"}
    paths = {find_path(locate(str(ran.corpus)), one.image_id) for one in ran.outcome.set_aside}
    assert {Path(str(path)).suffix for path in paths} == {".dcm"}
    assert any(IDENTITY["PatientName"] in str(path) for path in paths)
    with pytest.raises(UserError, match="no file has the key"):
        find_path(locate(str(ran.corpus)), "0" * 16)
    assert all(os.path.exists(str(path)) for path in paths)  # noqa: PTH110
