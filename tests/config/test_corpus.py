"""What follows from the settings of a corpus."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lungseg_ray.config import CorpusSettings


@pytest.mark.parametrize(
    ("names", "mirror", "pairs"),
    [
        (["left lung", "right lung"], "auto", ((1, 2),)),
        (["Right_Lung", "heart", "Left_Lung"], "auto", ((3, 1),)),
        (["left lung", "heart"], "auto", ()),
        (["lung", "heart"], "auto", ()),
        (["left lung", "right lung"], "none", ()),
        (["l", "r", "heart"], [("l", "r")], ((1, 2),)),
    ],
)
def test_mirrored_labels(names: list[str], mirror: object, pairs: tuple[tuple[int, int], ...]) -> None:
    settings = CorpusSettings.model_validate({"classes": len(names) + 1, "class_names": names, "mirror": mirror})
    assert settings.mirrored == pairs


def test_a_pair_of_unknown_names_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"mirror must name pairs of class_names \['a', 'b'\], found \['c'\]"):
        CorpusSettings.model_validate({"classes": 3, "class_names": ["a", "b"], "mirror": [("a", "c")]})


def test_a_class_that_two_pairs_name_is_refused() -> None:
    names = {"classes": 4, "class_names": ["a", "b", "c"]}
    for mirror in ([("a", "b"), ("b", "c")], [("a", "a")]):
        with pytest.raises(ValidationError, match="mirror must name each class once"):
            CorpusSettings.model_validate({**names, "mirror": mirror})


def test_values_and_colours_of_masks() -> None:
    settings = CorpusSettings.model_validate({"mask_values": {"0": 0, 77: 1, "#FF0000": 1, "1, 2,3": "ignore"}})
    assert settings.labels == {0: 0, 77: 1}
    assert settings.colours == {"#ff0000": 1, "#010203": "ignore"}
    with pytest.raises(ValidationError, match="expected a number or a colour such as #ff0000"):
        CorpusSettings.model_validate({"mask_values": {"red": 1}})


def test_the_background_has_no_name() -> None:
    with pytest.raises(ValidationError, match="without the background, which is label 0, found 'background'"):
        CorpusSettings.model_validate({"classes": 3, "class_names": ["Background", "lung"]})


@pytest.mark.parametrize("names", [["a", "a"], ["Left Lung", "left lung "], ["a", ""], ["lung", "mm"]])
def test_names_of_classes_that_collide(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="class_names must differ by more than capitals"):
        CorpusSettings.model_validate({"classes": 3, "class_names": names})


def test_as_many_classes_as_a_label_holds() -> None:
    names = [f"structure {number}" for number in range(1, 255)]
    assert CorpusSettings.model_validate({"classes": 255, "class_names": names}).classes == 255
    with pytest.raises(ValidationError, match="less than or equal to 255"):
        CorpusSettings.model_validate({"classes": 256, "class_names": [*names, "x"]})
