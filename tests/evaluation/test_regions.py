from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lungseg_ray.evaluation.regions import REGIONS, describe_outlines, region_excess


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((100, 120), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


class TestExcess:
    truth = box(20, 30, 80, 90)  # 60 x 60 pixels

    def test_nothing_differs(self) -> None:
        assert region_excess(self.truth, self.truth) == dict.fromkeys(REGIONS, 0.0)

    @pytest.mark.parametrize(
        ("region", "added"),
        [
            ("upper_left", box(10, 30, 20, 40)),
            ("middle_right", box(45, 90, 55, 100)),
            ("lower_central", box(80, 55, 90, 65)),
            ("lower_left", box(70, 20, 80, 30)),
        ],
    )
    def test_more_is_positive_and_less_negative(self, region: str, added: Any) -> None:
        found = region_excess(self.truth | added, self.truth)
        assert found.pop(region) == pytest.approx(100 / 3600)
        assert set(found.values()) == {0.0}
        less = region_excess(self.truth, self.truth | added)
        assert min(less.values()) < 0 <= max(less.values())

    def test_all_of_it(self) -> None:
        found = region_excess(np.zeros_like(self.truth), self.truth)
        assert sum(found.values()) == pytest.approx(-1)
        assert min(found.values()) == found["upper_left"] == pytest.approx(-0.35 / 3, abs=0.01)
        assert all(np.isnan(share) for share in region_excess(self.truth, np.zeros_like(self.truth)).values())


def evaluation(**means: float) -> Any:
    regions = {region: {"mean": 0.0, "low": -0.002, "high": 0.002} for region in REGIONS}
    for region, mean in means.items():
        regions[region] = {"mean": mean, "low": mean - 0.002, "high": mean + 0.002}
    return {"regions": regions, "class_names": ["lung"]}


def test_what_is_said_of_another_corpus() -> None:
    own = evaluation(upper_left=0.001)
    assert describe_outlines(own, own, "other") == []
    found = describe_outlines(own, evaluation(lower_central=0.031, upper_left=-0.012, lower_left=0.004), "other")
    assert found == [
        "other: lower central (the heart and the lung behind it): its masks contain less than the model has learned, "
        "by 3.1% of their area (+3.1% against +0.0% on its own corpus).",
        "other: upper left (the apex): its masks contain more than the model has learned, by 1.3% of their area "
        "(-1.2% against +0.1% on its own corpus).",
    ]
