"""Structures that masks distinguish: by files, by names in annotations, by values or by colours."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.corpus import read_sample
from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.errors import UserError
from tests.corpus.kinds import png
from tests.corpus.trees import listing

Pixels = NDArray[np.uint8]
LEFT: Pixels = cv2.ellipse(np.zeros((64, 64), np.uint8), (18, 32), (10, 20), 0, 0, 360, 1, -1)
RIGHT: Pixels = cv2.ellipse(np.zeros((64, 64), np.uint8), (46, 30), (9, 18), 0, 0, 360, 1, -1)
LABELS: Pixels = LEFT + 2 * RIGHT


def write(root: Path, **masks: Pixels) -> None:
    """Writes four images, and for each folder a mask of each; "__" in its name stands for "/", and "_" for a blank."""
    for number in range(4):
        image = np.full((64, 64), 60 + number, np.uint8) + 100 * (LABELS > 0)
        for folder, pixels in {"images": image.astype(np.uint8), **masks}.items():
            place = root / folder.replace("__", "/").replace("_", " ")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(png(pixels))


def mask_of(found: Listing) -> Pixels:
    assert len(found.records) == 4
    assert found.set_aside == []
    return read_sample(found.records[0], found.corpus, longer_side=512).mask


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write(tmp_path, masks__left_lung=LEFT * np.uint8(255), masks__right_lung=RIGHT * np.uint8(255))
        return tmp_path

    def test_they_are_united(self, root: Path) -> None:
        assert np.array_equal(mask_of(listing(root)), (LABELS > 0).astype(np.uint8))

    def test_each_is_a_class(self, root: Path) -> None:
        found = listing(root, unite=False)
        assert (found.corpus.classes, found.corpus.class_names) == (3, ["left lung", "right lung"])
        assert "classes: 1 left lung, 2 right lung (corpus.unite, corpus.class_names)" in found.recognition
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.mirrored == ((1, 2),)

    @pytest.mark.parametrize("names", [["right lung", "left lung"], ["right", "left"]])
    def test_classes_of_the_user(self, root: Path, names: list[str]) -> None:
        found = listing(root, classes=3, class_names=names)
        assert np.array_equal(mask_of(found), (2 * LEFT + RIGHT).astype(np.uint8))
        assert found.warnings == []

    def test_marks_of_another_value(self, tmp_path: Path) -> None:
        write(tmp_path, masks__left=LEFT * np.uint8(38), masks__right=RIGHT * np.uint8(38))
        found = listing(tmp_path, unite=False)
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.class_names == ["left", "right"]


class TestValues:
    def test_they_are_asked_for(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        (warning,) = listing(tmp_path).warnings
        assert warning.endswith("or --corpus.unite true if they are one.")

    def test_they_are_united(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        assert np.array_equal(mask_of(listing(tmp_path, unite=True)), (LABELS > 0).astype(np.uint8))

    def test_each_is_a_class(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        found = listing(tmp_path, unite=False)
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.class_names == ["structure 3", "structure 6"]


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "left lung": 1, "right lung": 2}, {"0": "background", "1": "left lung", "2": "right lung"}],
)
def test_names_of_nnunet(labels: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, labelsTr=LABELS)
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "numTraining": 4}))
    assert np.array_equal(mask_of(listing(tmp_path)), (LABELS > 0).astype(np.uint8))
    found = listing(tmp_path, unite=False)
    assert np.array_equal(mask_of(found), LABELS)
    assert found.corpus.class_names == ["left lung", "right lung"]
    named = listing(tmp_path, classes=3, class_names=["right lung", "left lung"])
    assert np.array_equal(mask_of(named), (2 * LEFT + RIGHT).astype(np.uint8))
    with pytest.raises(UserError, match=r"expected the structures clavicle, heart of .*, found 'left lung'"):
        listing(tmp_path, classes=3, class_names=["clavicle", "heart"])


def test_colours_of_cvat(tmp_path: Path) -> None:
    colours = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    write(tmp_path, SegmentationClass=colours[LABELS][:, :, ::-1])
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlung:250,50,83::\nheart:51,221,255::\n"
    )
    found = listing(tmp_path)
    assert "labels: labelmap.txt names 3 values: #000000 background, #fa3253 lung, #33ddff heart" in found.recognition
    assert np.array_equal(mask_of(found), LEFT)
    both = listing(tmp_path, unite=False)
    assert both.corpus.class_names == ["heart", "lung"]
    assert np.array_equal(mask_of(both), (2 * LEFT + RIGHT).astype(np.uint8))


def test_names_of_other_values_are_not_used(tmp_path: Path) -> None:
    """A labelmap of colours beside masks of 0 and 255."""
    write(tmp_path, masks=LEFT * np.uint8(255))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nlung:250,50,83::\n")
    assert np.array_equal(mask_of(listing(tmp_path)), LEFT)
