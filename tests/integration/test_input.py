"""Corpora as they are published, and one with everything wrong, through shard, evaluate and predict."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.config import EvaluateJob, PredictJob
from lungseg_ray.jobs.evaluate import evaluate_run
from lungseg_ray.jobs.predict import Prediction, predict
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.build import shard
from lungseg_ray.shards.describe import describe_outcome
from lungseg_ray.shards.format import read_rows
from lungseg_ray.storage import locate
from tests.conftest import write_pairs
from tests.corpus import kinds, trees
from tests.corpus.kinds import USED
from tests.helpers import make_settings
from tests.inference.test_ensemble import save


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a model of noise: what is read is what counts here."""
    place = tmp_path_factory.mktemp("runs") / "run"
    run = Run(locate(str(place)))
    run.start(make_settings(evaluate={"resamples": 20, "robustness": 0}), fingerprint="none")
    save(run.place / "best", seed=0, size=32)
    return str(place)


def test_shard_evaluate_and_predict_set_the_same_files_aside(cluster: None, tmp_path: Path, run: str) -> None:
    """Every kind of image, good or bad, as one corpus."""
    root = write_pairs(tmp_path / "pairs", 12)
    # A column of the name of something that is known otherwise.
    (root / "index.csv").write_text("stem,reason,bad,study\nx000,odd,odd,odd\n")
    expected = {}
    for number, kind in enumerate([*kinds.GOOD_IMAGES, *kinds.BAD_IMAGES]):
        name = f"k{number:02d}"
        (root / f"images/{name}{kind.suffix}").write_bytes(kind.make())
        (root / f"masks/{name}.png").write_bytes(kinds.png(kinds.WHITE))
        # Among many files that say otherwise, nobody finds out that white is 255 in this one.
        expected[name] = "out_of_range" if kind.name == "TIFF, float from 0 to 255" else kind.outcome
    settings = make_settings(
        corpus={"root": str(root), "layout": "pairs"},
        shards={"root": str(tmp_path / "shards"), "max_set_aside": 1.0, "rows": 16},
    )
    bad = {name: outcome for name, outcome in expected.items() if outcome != USED}
    outcome = shard(settings)
    assert {one.image_id: one.reason for one in outcome.set_aside if one.reason != "duplicate"} == bad
    result, _ = evaluate_run(EvaluateJob(run=run, corpus=settings.corpus, evaluate=settings.evaluate))
    assert {one["image_id"]: one["reason"] for one in result["set_aside"] if one["reason"] != "duplicate"} == bad
    duplicates = [sum(one["reason"] == "duplicate" for one in result["set_aside"])]
    duplicates.append(sum(one.reason == "duplicate" for one in outcome.set_aside))
    assert duplicates[0] == duplicates[1]
    assert (result["layout"], result["unlabelled"]) == ("pairs", 0)
    assert result["n"] + len(result["set_aside"]) == 12 + len(expected)
    (root / "images" / os.fsdecode(b"\xff\xfe.png")).write_bytes(kinds.png(kinds.IMAGE))
    predictions: list[Prediction] = []
    job = PredictJob(run=run, images=str(root / "images"), out=str(tmp_path / "out"))
    predict(job, watch=predictions.append)
    found = {one.image.split(".")[0]: one.reason.split(":")[0] or USED for one in predictions}
    # Without a mask, an image is turned as it asks.
    expected = {name: USED if outcome == "rotated" else outcome for name, outcome in expected.items()}
    assert found == {**{f"x{number:03d}": USED for number in range(12)}, **expected, "\\xff\\xfe": "bad_name"}
    with (tmp_path / "out/predictions.csv").open() as lines:
        assert Counter(row["status"] for row in csv.DictReader(lines)) == Counter(one.status for one in predictions)


@pytest.mark.parametrize(
    ("layout", "options", "labelled", "unlabelled"),
    [
        ("montgomery", {"size": 64, "count": 30}, 30, 0),
        ("shenzhen", {"size": 64, "count": 48}, 42, 6),
        ("jsrt", {"count": 4, "whole": 4}, 4, 0),
    ],
)
def test_published_layouts(
    cluster: None, tmp_path: Path, layout: str, options: dict[str, int], labelled: int, unlabelled: int
) -> None:
    """A tree as it is published, to shards; a part of it."""
    root = getattr(trees, layout)(tmp_path / "tree", **options)
    settings = make_settings(
        corpus={"root": str(root)}, shards={"root": str(tmp_path / "shards"), "longer_side": 256, "rows": 200}
    )
    outcome = shard(settings)
    assert outcome.index.layout == layout
    assert outcome.listing.because in describe_outcome(outcome)
    assert not outcome.set_aside
    assert sum(one.images for one in outcome.index.splits.values()) == labelled
    assert len(outcome.listing.unlabelled) == unlabelled
    samples = [
        row.sample for one in outcome.index.shards for row in read_rows(outcome.root, one, range(min(8, one.rows)))
    ]
    for sample in samples:
        assert sample.image.shape == (*sample.mask.shape, 1)
        # Both lungs, one on each side of the middle.
        halves = np.array_split(sample.mask, 2, axis=1)
        assert all(half.mean() > 0.02 for half in halves)
    # Lungs are darker than what is around them, whichever way a file keeps its values.
    darker = [sample.image[sample.mask == 1].mean() < sample.image[sample.mask == 0].mean() for sample in samples]
    assert np.mean(darker) > 0.7
    if layout == "jsrt":
        facts = read_rows(outcome.root, outcome.index.shards[0], [0])[0]
        assert (facts.sample.source_bits, facts.sample.spacing) == (12, (0.175, 0.175))
        assert facts.sample.source_height == 2048
