from __future__ import annotations

import numpy as np
import pytest

from lungseg_ray.audit import outliers
from lungseg_ray.audit.facts import LabelFacts
from tests.audit.helpers import make_facts


class TestOutliers:
    def test_z_scores(self) -> None:
        # Median 3, absolute deviations 2, 1, 0, 1, 97 with the median 1.
        found = outliers.z_scores(np.array([1.0, 2, 3, 4, 100]))
        assert found == pytest.approx(np.array([-2, -1, 0, 1, 97]) / 1.4826)

    def test_mostly_the_same(self) -> None:
        # The median deviation is 0; the mean one is 0.2.
        assert outliers.z_scores(np.array([2.0, 2, 2, 2, 1]))[-1] == pytest.approx(-1 / (1.2533 * 0.2))
        assert outliers.z_scores(np.array([2.0, 2, 2])).tolist() == [0, 0, 0]
        assert np.isnan(outliers.z_scores(np.array([np.nan, np.nan]))).all()

    def test_says_why(self) -> None:
        images = [make_facts(f"x{number}", mean=0.5 + number / 100) for number in range(9)]
        images[4] = make_facts("odd", labels={"lung": LabelFacts(0.62, 2, 0, 0.9, (), 0.5, 0.5, 0.5)}, mean=0.54)
        first = outliers.find_outliers(images, ["lung"])[0]
        assert first.image.image_id == "odd"
        assert str(first.reasons[0]).startswith("share of lung 0.62, median 0.3 (z +")

    def test_a_few_for_each_reason(self) -> None:
        images = [make_facts(f"x{number}", width=120 + 40 * (number > 30)) for number in range(40)]
        images[0] = make_facts("bright", mean=0.9)
        found = outliers.find_outliers(images, ["lung"])
        assert [one.reasons[0].name for one in found].count("width / height") == 4
        assert "bright" in [one.image.image_id for one in found]

    def test_images_without_masks_take_part(self) -> None:
        images = [make_facts(f"x{number}", labels={}, mean=number / 10) for number in range(5)]
        assert outliers.find_outliers(images, ["lung"])[0].image.image_id in ("x0", "x4")
