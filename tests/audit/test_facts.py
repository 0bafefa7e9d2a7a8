from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungseg_ray.audit.facts import LabelFacts, image_facts, intensity, measure_label, perceptual_hash
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.record import MaskSource, Record, Sample
from tests.audit.helpers import make_audit, table_of


class TestMarked:
    def test_two_parts_and_a_speck(self) -> None:
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 5:25] = 1  # 400 pixels, all left of column 30
        mask[10:30, 35:45] = 1  # 200
        mask[35, 50] = 1  # 1 pixel, less than 1 % of 400
        found = measure_label(mask, 1)
        assert found.share == pytest.approx(601 / 2400)
        assert (found.parts, found.specks, found.ratio, found.touches) == (2, 1, 0.5, ())
        assert found.left == pytest.approx(400 / 601)
        # Rows 10 to 29 have their centre at 20; the speck's is at 35.5.
        assert found.row == pytest.approx((600 * 20 + 35.5) / 601 / 40)
        assert found.column == pytest.approx((400 * 15 + 200 * 40 + 50.5) / 601 / 60)

    def test_borders_of_each_label(self) -> None:
        mask = np.zeros((20, 20), np.uint8)
        mask[0:5, 8:12] = 1
        mask[10:20, 15:20] = 2
        assert measure_label(mask, 1).touches == ("top",)
        assert measure_label(mask, 2).touches == ("right", "bottom")

    def test_middle_column_counts_half(self) -> None:
        # Of 5 columns the middle one is half left: (1 + 1 + 0.5) / 5.
        assert measure_label(np.ones((3, 5), np.uint8), 1).left == pytest.approx(0.5)

    def test_ignored_pixels_do_not_count(self) -> None:
        mask = np.zeros((10, 10), np.uint8)
        mask[:5] = 255
        mask[9, 1:3] = 1
        assert measure_label(mask, 1).share == pytest.approx(2 / 50)

    def test_diagonal_neighbours_are_one_part(self) -> None:
        assert measure_label(np.eye(9, dtype=np.uint8), 1).parts == 1

    def test_nothing(self) -> None:
        assert measure_label(np.zeros((9, 9), np.uint8), 1) == LabelFacts(0.0, 0, 0, None, (), None, None, None)


class TestIntensity:
    def test_figures(self) -> None:
        image = np.array([[0, 0, 51, 51, 102, 102, 255, 255, 255, 255]], np.uint8)[:, :, None]
        found = intensity(image)
        # (0 + 0 + 0.2 + 0.2 + 0.4 + 0.4 + 4) / 10
        assert found["mean"] == pytest.approx(0.52)
        assert found["std"] == pytest.approx(np.std([0, 0, 0.2, 0.2, 0.4, 0.4, 1, 1, 1, 1]))
        assert [found["black"], found["white"]] == pytest.approx([0.2, 0.4])
        assert (found["low"], found["high"], found["brightest"]) == (0, 1, 1)

    def test_colour_is_seen_in_grey(self) -> None:
        image = np.zeros((4, 4, 3), np.uint8)
        image[..., 1] = 255
        assert intensity(image)["mean"] == pytest.approx(150 / 255)  # 0.587 green
        assert perceptual_hash(image) == perceptual_hash(np.full((4, 4, 1), 150, np.uint8))


class TestFacts:
    def sample(self, **change: Any) -> Sample:
        image, mask = draw(0, seed=0, size=64)
        plain = {"source_height": 640, "source_width": 640, "source_bits": 12, "spacing": (0.2, 0.2)}
        plain |= {"image_sha256": "a", "mask_sha256": "b"}
        return Sample(image=image[:, :, None], mask=mask, **{**plain, **change})

    def test_of_the_file(self) -> None:
        record = Record("x1", "/data/x1.PNG", (MaskSource("/m.png"),), "p1", groups={"sex": "f"})
        found = image_facts(record, self.sample(), ["lung"])
        assert (found.format, found.place, found.bits, found.spacing) == ("png", "/data/x1.PNG", 12, (0.2, 0.2))
        assert (found.height, found.patient_id, dict(found.groups)) == (640, "p1", {"sex": "f"})
        assert found.labels["lung"].parts == 2

    def test_without_a_mask(self) -> None:
        assert image_facts(Record("x", "/x.png", (), "x"), self.sample(mask_sha256=""), ["lung"]).labels == {}

    def test_private_places_are_not_told(self, tmp_path: Path) -> None:
        record = Record(
            "a1", "/data/Doe^Jane/1.2.3.dcm", (MaskSource("/m.png"),), "b2", groups={"sex": "F"}, private=True
        )
        found = image_facts(record, self.sample(), ["lung"])
        assert (found.place, found.format, found.groups) == ("a1", "dicom", {"sex": "F"})
        assert "Doe" not in table_of(make_audit([found]), tmp_path)


def test_many_small_parts_are_not_specks() -> None:
    mask = np.zeros((80, 80), np.uint8)
    mask[::4, ::4] = 1
    assert (measure_label(mask, 1).parts, measure_label(mask, 1).specks) == (400, 0)
