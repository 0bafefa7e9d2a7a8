"""Measures of structures of known size."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.corpus.phantom import draw
from lungseg_ray.numerics.measures import measure


def rectangle(labels: NDArray[np.uint8], label: int, rows: slice, columns: slice) -> None:
    labels[rows, columns] = label


def chest() -> NDArray[np.uint8]:
    """Two lungs of 40 x 20 and 50 x 24 px, 100 px from border to border, and a heart of 45 px."""
    labels = np.zeros((100, 200), np.uint8)
    rectangle(labels, 1, slice(30, 70), slice(50, 70))
    rectangle(labels, 1, slice(25, 75), slice(126, 150))
    rectangle(labels, 2, slice(50, 70), slice(80, 125))
    return labels


def test_a_chest_of_known_size() -> None:
    assert measure(chest(), ["Lung", "heart"], (0.5, 0.25)) == {
        "lung_area_px": 2000,
        "lung_area_mm2": 250.0,
        "heart_area_px": 900,
        "heart_area_mm2": 112.5,
        "right_lung_area_px": 800,
        "right_lung_area_mm2": 100.0,
        "right_lung_height_px": 40,
        "right_lung_height_mm": 20.0,
        "left_lung_area_px": 1200,
        "left_lung_area_mm2": 150.0,
        "left_lung_height_px": 50,
        "left_lung_height_mm": 25.0,
        "lung_symmetry": pytest.approx(2 / 3),
        "thoracic_width_px": 100,
        "thoracic_width_mm": 25.0,
        "cardiac_width_px": 45,
        "cardiac_width_mm": 11.25,
        "cardiothoracic_ratio": 0.45,
    }


def test_labels_that_name_a_side_are_believed() -> None:
    labels = np.zeros((100, 200), np.uint8)
    rectangle(labels, 2, slice(30, 70), slice(50, 70))
    rectangle(labels, 1, slice(30, 60), slice(130, 150))
    found = measure(labels, ["left lung", "right lung"])
    assert (found["right_lung_height_px"], found["left_lung_height_px"]) == (40, 30)
    assert found["right_lung_height_mm"] is None


def test_specks_and_other_structures_of_a_lung_count_for_nothing() -> None:
    labels = chest()
    expected = measure(labels, ["lung", "heart", "lung nodule"])
    rectangle(labels, 1, slice(0, 2), slice(0, 2))
    rectangle(labels, 2, slice(99, 100), slice(199, 200))
    rectangle(labels, 3, slice(90, 99), slice(0, 50))
    found = measure(labels, ["lung", "heart", "lung nodule"])
    different = {name for name in found if found[name] != expected[name]}
    assert different == {"lung_area_px", "heart_area_px", "lung_nodule_area_px"}


def test_a_side_alone_is_not_split() -> None:
    labels = np.zeros((100, 200), np.uint8)
    rectangle(labels, 1, slice(10, 20), slice(50, 70))
    rectangle(labels, 1, slice(30, 70), slice(50, 70))
    found = measure(labels, ["right_lung"])
    assert (found["right_lung_area_px"], found["right_lung_height_px"], found["left_lung_area_px"]) == (1000, 60, None)


@pytest.mark.parametrize(("columns", "there", "missing"), [((20, 40), "right", "left"), ((150, 170), "left", "right")])
def test_one_lung(columns: tuple[int, int], there: str, missing: str) -> None:
    labels = np.zeros((100, 200), np.uint8)
    rectangle(labels, 1, slice(30, 70), slice(*columns))
    found = measure(labels, ["lung"])
    assert found[f"{there}_lung_area_px"] == 800
    assert found[f"{missing}_lung_area_px"] is None
    assert (found["lung_symmetry"], found["thoracic_width_px"]) == (None, None)


def test_nothing_is_found() -> None:
    found = measure(np.zeros((10, 10), np.uint8), ["lung", "heart"])
    assert {name: value for name, value in found.items() if value is not None} == {
        "lung_area_px": 0,
        "heart_area_px": 0,
    }
    assert found.keys() == measure(chest(), ["lung", "heart"]).keys()


def test_other_structures_have_areas_alone() -> None:
    labels = np.ones((4, 5), np.uint8)
    assert measure(labels, ["cell"], (1, 1)) == {"cell_area_px": 20, "cell_area_mm2": 20}


def test_phantoms() -> None:
    for number in range(20):
        mask = draw(number, seed=0, size=256)[1]
        found = measure(mask, ["lung"], (1.0, 1.0))
        parts = [found["right_lung_area_px"], found["left_lung_area_px"]]
        assert sum(part or 0 for part in parts) == mask.sum()
        assert found["lung_symmetry"] is not None
        assert found["lung_symmetry"] > 0.5
        assert found["thoracic_width_mm"]
        assert found["thoracic_width_mm"] < 256
