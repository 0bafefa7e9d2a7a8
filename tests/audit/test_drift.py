"""How a corpus differs from training images."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from lungseg_ray.audit.drift import Figures, compared_figures, figures, figures_of_sample, find_shifts
from lungseg_ray.audit.facts import image_facts
from lungseg_ray.config import CorpusSettings, ShardJob
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.jobs.audit import audit, audit_summary
from lungseg_ray.shards.build import shard
from tests.conftest import write_pairs


def normal(mean: float, *, seed: int = 0, count: int = 40) -> list[Figures]:
    generator = np.random.default_rng(seed)
    return [{"mean": float(value)} for value in generator.normal(mean, 0.05, count)]


def test_a_shift_is_found_with_its_direction() -> None:
    (shift,) = find_shifts(normal(0.5), normal(0.4, seed=1))
    assert 1.5 < -shift.effect < 2.5
    assert str(shift).startswith("images are darker than those of training: mean intensity 0.4 ± 0.046 here, 0.497")


def test_equal_sets_have_none() -> None:
    assert [find_shifts(normal(0.5, seed=seed), normal(0.5, seed=seed + 100)) for seed in range(50)] == [[]] * 50


def test_few_images_say_nothing() -> None:
    assert find_shifts(normal(0.5, count=7), normal(0.1)) == []
    assert compared_figures(normal(0.5, count=7), normal(0.1)) == []
    assert compared_figures(normal(0.5, count=8), normal(0.1)) == ["mean"]


def test_a_figure_that_never_varies() -> None:
    (shift,) = find_shifts([{"spacing": 0.1}] * 20, [{"spacing": 0.2}] * 20)
    assert shift.meaning == "images are of coarser pixels"
    assert find_shifts([{"spacing": 0.1}] * 20, [{"spacing": 0.1}] * 20) == []


def test_images_of_a_corpus_and_of_shards_have_the_same_figures(tmp_path: Path) -> None:
    corpus = list_corpus(CorpusSettings(root=str(write_pairs(tmp_path / "corpus", 2)))).corpus
    record = list_corpus(corpus).records[0]
    sample = read_sample(record, corpus, longer_side=1024)
    assert figures(image_facts(record, sample, ["lung"])) == figures_of_sample(sample, ["lung"])


def test_a_corpus_beside_shards(cluster: None, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "corpus", 40)
    given = ShardJob.model_validate({"corpus": {"root": str(root)}, "shards": {"root": str(tmp_path / "shards")}})
    shard(given)
    other = write_pairs(tmp_path / "other", 20, seed=1)
    for path in (other / "images").iterdir():
        pixels = cv2.imread(str(path), 0)
        assert pixels is not None
        cv2.imwrite(str(path), pixels[:, ::2] // 2)
    for path in (other / "masks").iterdir():
        pixels = cv2.imread(str(path), 0)
        assert pixels is not None
        cv2.imwrite(str(path), pixels[:, ::2])
    job = ShardJob.model_validate(
        {
            "corpus": {"root": str(other)},
            "shards": {"root": str(tmp_path / "audited")},
            "against": str(tmp_path / "shards"),
        }
    )
    found, page = audit(job, against=job.against)
    assert found.drift
    meanings = {shift.meaning for shift in found.drift.shifts}
    assert {"images are narrower", "images are darker in their brightest parts"} <= meanings
    assert len(found.drift.examples) == 3
    text = page.read_text()
    assert "Compared with training images" in text
    assert "images are narrower than those of training: width through height" in text.lower()
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(audit_summary(found, page))
    assert "Images are narrower than those of training" in console.export_text()
