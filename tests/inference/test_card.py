from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lungseg_ray.inference.card import model_card
from lungseg_ray.run.summary import IntervalFigures, ValidationFigures
from lungseg_ray.shards.index import ShardIndex, SplitFigures
from lungseg_ray.storage import locate
from tests.helpers import make_settings, write_shards
from tests.inference.helpers import make_sidecar

VALIDATION: ValidationFigures = {"loss": 0.25, "iou": 0.8125, "dice": 0.9375}
SIDE = make_sidecar(threshold=0.375)

CORPUS = {"root": "/data/chests", "about": "Chests of one hospital.", "licence": "cc-by-4.0"}


def interval(mean: float) -> IntervalFigures:
    return {"mean": mean, "low": mean - 0.0625, "high": mean + 0.0625}


def evaluation(**groups: Any) -> Any:
    return {
        "n": 12,
        "n_empty": 2,
        **{"dice": interval(0.875), "iou": interval(0.75), "hd95": interval(17.5), "assd": interval(3.0)},
        "groups": groups,
    }


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    made = write_shards(locate(str(tmp_path)), rows={"train": [1]}, skip={})
    splits = {
        split: SplitFigures(images=images, patients=patients, label_shares={}, intensity_mean=0, intensity_std=0)
        for split, images, patients in (("train", 101, 90), ("val", 21, 20), ("test", 12, 11))
    }
    return made.model_copy(update={"splits": splits})


def test_says_what_a_user_must_know(index: ShardIndex) -> None:
    settings = make_settings(corpus=CORPUS, runs={"name": "third"})
    card = model_card(settings, index, SIDE, VALIDATION, test=evaluation())
    for text in (
        "# third: lung by Linknet with timm-regnety_002",
        "smp.from_pretrained",
        "Input: 1 channel(s), stretched bilinearly to 32 x 32 px, divided by 255.",
        "sigmoid, threshold 0.375",
        "## Data",
        "/data/chests. Chests of one hospital.",
        "Licence of the data: cc-by-4.0.",
        "| train | 101 | 90 |",
        "| val | 21 | 20 |",
        "| test | 12 | 11 |",
        "No patient is in two splits",
        index.fingerprint[:16],
        "| validation | 21 | 0.9375 | 0.8125 | |",
        "| test | 12 | 0.8750 (0.8125 to 0.9375) | 0.7500 | 17.5 px |",
        "## Intended use",
        "no medical device",
        "## Failure cases",
        "On 2 of 12 test images either truth or prediction was empty",
        "evaluation/test/contact_sheet.png",
    ):
        assert text in card, text


def test_front_matter(index: ShardIndex) -> None:
    card = model_card(make_settings(corpus=CORPUS), index, SIDE, VALIDATION, test=None)
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(front)
    assert found["library_name"] == "segmentation-models-pytorch"
    assert found["license"] == "cc-by-4.0"


def test_lowest_subgroup(index: ShardIndex) -> None:
    groups = {
        "sex": {"F": {"dice": interval(0.75), "n": 5}, "M": {"dice": interval(0.875), "n": 7}},
        "site": {"one": {"dice": interval(0.625), "n": 3}},
    }
    card = model_card(make_settings(corpus=CORPUS), index, SIDE, VALIDATION, test=evaluation(**groups))
    assert "Lowest subgroup: site = one, Dice 0.6250, 3 images." in card
    assert "Lowest subgroup" not in model_card(make_settings(corpus=CORPUS), index, SIDE, VALIDATION, test=evaluation())


def test_without_test_images(index: ShardIndex) -> None:
    card = model_card(make_settings(corpus=CORPUS), index, SIDE, VALIDATION, test=None)
    assert "No test images: nothing is known of its failures yet" in card
    assert "| test | 12 | 11 |" in card
    assert "HD95 |\n|---|---|---|---|---|\n| validation" in card


def test_data_that_nobody_described(index: ShardIndex) -> None:
    card = model_card(make_settings(corpus={"root": "/data/x"}), index, SIDE, VALIDATION, test=None)
    assert "has not described it (corpus.about)" in card
    assert "not stated (corpus.licence)" in card
    assert 'license: "other"' in card


def test_phantoms_and_several_classes(index: ShardIndex) -> None:
    settings = make_settings(corpus={"classes": 3, "class_names": ["left lung", "right lung"]})
    phantoms = index.model_copy(update={"layout": "phantom"})
    card = model_card(settings, phantoms, make_sidecar(classes=3), VALIDATION, test=None)
    assert "synthetic chest phantoms" in card
    assert "left lung, right lung by Linknet" in card
    assert "softmax, the largest" in card


def test_says_what_the_model_does_by_itself(index: ShardIndex) -> None:
    side = make_sidecar(fit="pad", normalise=True, flips="horizontal", clean_up=True, threshold=0.45)
    settings = make_settings(corpus=CORPUS, model={"architecture": "U2Net", "encoder": "rsu_small"})
    card = model_card(settings, index, side, VALIDATION, test=None)
    for text in (
        "model = load_export(",
        "padded to a square with black borders, resized bilinearly to 32 x 32 px, divided by 255, then normalised",
        "sigmoid, threshold 0.45, averaged over mirror images (horizontal); of each label the two largest",
    ):
        assert text in card


def test_corpora_that_were_mixed_in_are_named(index: ShardIndex) -> None:
    corpora = [{"root": "/data/others", "share": 0.25, "until": 0.5, "fingerprint": "f" * 64}]
    card = model_card(make_settings(corpus=CORPUS, corpora=corpora), index, SIDE, VALIDATION, test=None)
    assert (
        "25% of the training images from 0% to 50% of the run are from /data/others (shards ffffffffffffffff)" in card
    )
    assert "those of corpora that were mixed in were not compared" in card
