from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus.record import Sample
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.evaluation.measure import ImageFigures, measure_image
from lungseg_ray.evaluation.summary import figures_table, summarise_images
from lungseg_ray.evaluation.table import FigureTable
from lungseg_ray.run.summary import Evaluation
from lungseg_ray.shards.format import ShardRow
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import Location

Mask = NDArray[np.uint8]


def make_row(
    truth: Mask,
    *,
    times: int = 1,
    spacing: tuple[float, float] | None = None,
    name: str = "a",
    groups: dict[str, str] | None = None,
) -> ShardRow:
    """A row of mask (H, W), whose source is `times` as large."""
    height, width = truth.shape
    image = np.zeros((height, width, 1), np.uint8)
    sample = Sample(image, truth, height * times, width * times, 8, spacing, "i", "m")
    return ShardRow(name, f"patient of {name}", groups or {}, sample)


def column(at: int, label: int = 1) -> Mask:
    """(8, 12): one column of pixels."""
    mask = np.zeros((8, 12), np.uint8)
    mask[:, at] = label
    return mask


class TestOneClass:
    def test_overlap(self) -> None:
        # (8, 12): truth rows 0 to 3 of columns 0 to 3 (16 px), prediction columns 2 to 5 (16 px), 8 px in common.
        truth, prediction = np.zeros((2, 8, 12), np.uint8)
        truth[:4, :4] = 1
        prediction[:4, 2:6] = 1
        found: Any = measure_image(make_row(truth), prediction, ["lung"], clean_up=False).values
        assert (found["tp"], found["fp"], found["fn"], found["empty"]) == (8, 8, 8, 0)
        assert found["dice"] == pytest.approx(2 * 8 / 32)
        assert found["iou"] == pytest.approx(8 / 24)
        assert not [key for key in found if key.startswith("clean_") or key.endswith(("_mm", "_lung"))]

    @pytest.mark.parametrize("times", [1, 2])
    def test_distances_are_in_pixels_of_the_source(self, times: int) -> None:
        # Every pixel of one column is 3 columns from the other.
        found = measure_image(make_row(column(3), times=times), column(6), ["lung"], clean_up=False)
        assert found.values["hd95"] == found.values["assd"] == pytest.approx(3 * times)
        assert (found.height, found.width) == (8 * times, 12 * times)
        assert found.values["dice"] == found.values["iou"] == 0

    def test_spacing(self) -> None:
        # 3 columns of the grid are 6 of the source, of 0.2 mm each; rows, of 0.5 mm, do not matter.
        found: Any = measure_image(
            make_row(column(3), times=2, spacing=(0.5, 0.2)), column(6), ["lung"], clean_up=False
        ).values
        assert (found["hd95"], found["assd"]) == (pytest.approx(6), pytest.approx(6))
        assert (found["hd95_mm"], found["assd_mm"]) == (pytest.approx(1.2), pytest.approx(1.2))
        # 2 rows of the grid are 4 of the source, of 0.5 mm each.
        top, below = np.zeros((2, 8, 12), np.uint8)
        top[2], below[4] = 1, 1
        found = measure_image(make_row(top, times=2, spacing=(0.5, 0.2)), below, ["lung"], clean_up=False).values
        assert (found["hd95"], found["hd95_mm"]) == (pytest.approx(4), pytest.approx(2))

    def test_ignored_pixels_count_nowhere(self) -> None:
        # (8, 12): truth in column 3, columns 6 on are ignored; the prediction marks columns 3 and 9.
        truth = column(3)
        truth[:, 6:] = 255
        found: Any = measure_image(make_row(truth), column(3) | column(9), ["lung"], clean_up=False).values
        assert (found["tp"], found["fp"], found["fn"]) == (8, 0, 0)
        assert (found["dice"], found["iou"], found["hd95"], found["assd"], found["empty"]) == (1, 1, 0, 0, 0)

    @pytest.mark.parametrize(("truth", "prediction"), [(column(3), 0 * column(3)), (0 * column(3), column(3))])
    def test_one_side_empty(self, truth: Mask, prediction: Mask) -> None:
        # The diagonal of 16 x 24 source pixels; in mm of 16 * 0.5 = 8 and 24 * 0.25 = 6: 10.
        found: Any = measure_image(
            make_row(truth, times=2, spacing=(0.5, 0.25)), prediction, ["lung"], clean_up=False
        ).values
        assert found["hd95"] == found["assd"] == pytest.approx(math.hypot(16, 24))
        assert found["hd95_mm"] == found["assd_mm"] == pytest.approx(10)
        assert (found["dice"], found["iou"], found["empty"]) == (0, 0, 1)

    def test_both_empty(self) -> None:
        nothing = np.zeros((8, 12), np.uint8)
        found: Any = measure_image(make_row(nothing), nothing, ["lung"], clean_up=True).values
        for prefix in ("", "clean_"):
            keys = ("dice", "iou", "hd95", "assd", "empty", "tp", "fp", "fn")
            assert [found[prefix + key] for key in keys] == [1, 1, 0, 0, 0, 0, 0, 0]

    def test_clean_up(self) -> None:
        # (8, 12): truth is two boxes of 3 x 3. The prediction has a hole in the first and a third, small component.
        truth = np.zeros((8, 12), np.uint8)
        truth[1:4, 1:4] = truth[1:4, 5:8] = 1
        prediction = truth.copy()
        prediction[2, 2] = 0
        prediction[7, 11] = 1
        found: Any = measure_image(make_row(truth), prediction, ["lung"], clean_up=True).values
        assert (found["tp"], found["fp"], found["fn"]) == (17, 1, 1)
        assert found["dice"] == pytest.approx(34 / 36)
        assert (found["clean_tp"], found["clean_fp"], found["clean_fn"], found["clean_dice"]) == (18, 0, 0, 1)
        assert found["clean_hd95"] == 0 < found["hd95"]
        assert {key for key in found if key.startswith("clean_")} == {
            f"clean_{key}" for key in ("dice", "iou", "hd95", "assd", "empty", "tp", "fp", "fn")
        }
        assert prediction[7, 11] == 1

    def test_names_and_groups(self) -> None:
        row = make_row(column(3), name="x7", groups={"sex": "F"})
        found = measure_image(row, column(3), ["lung"], clean_up=False)
        assert (found.image_id, found.patient_id, found.groups) == ("x7", "patient of x7", {"sex": "F"})


class TestThreeClasses:
    # (8, 12): label 1 in column 2, label 2 in column 8, one column ignored.
    truth = column(2, 1) + column(8, 2) + column(11, 255)
    # Label 1 is right in the upper half and 2 columns off in the lower; label 2 is missing; 2 is said where ignored.
    prediction = column(11, 2)
    prediction[:4, 2] = 1
    prediction[4:, 4] = 1

    def test_each_class_and_their_mean(self) -> None:
        found: Any = measure_image(make_row(self.truth), self.prediction, ["left", "right"], clean_up=False).values
        assert [found[f"{key}_left"] for key in ("tp", "fp", "fn")] == [4, 4, 4]
        assert [found[f"{key}_right"] for key in ("tp", "fp", "fn")] == [0, 0, 8]
        assert (found["dice_left"], found["iou_left"]) == (pytest.approx(0.5), pytest.approx(1 / 3))
        assert (found["dice_right"], found["iou_right"]) == (0, 0)
        diagonal = math.hypot(8, 12)
        assert found["hd95_right"] == found["assd_right"] == pytest.approx(diagonal)
        assert (found["dice"], found["iou"]) == (pytest.approx(0.25), pytest.approx(1 / 6))
        assert found["hd95"] == pytest.approx((found["hd95_left"] + diagonal) / 2)
        assert found["empty"] == 1
        assert "tp" not in found

    def test_background(self) -> None:
        # 88 valid pixels: 72 of background, of which 4 are predicted as label 1; 4 + 8 others are predicted as it.
        found: Any = measure_image(make_row(self.truth), self.prediction, ["left", "right"], clean_up=False).values
        assert [found[f"{key}_background"] for key in ("tp", "fp", "fn")] == [68, 12, 4]


def figures(
    dice: float,
    *,
    patient: str = "",
    empty: int = 0,
    counts: tuple[int, int, int] = (1, 0, 0),
    more: dict[str, float] | None = None,
    **groups: str,
) -> ImageFigures:
    tp, fp, fn = counts
    means = dict.fromkeys(("dice", "iou", "hd95", "assd"), dice)
    values = {**means, "empty": empty, "tp": tp, "fp": fp, "fn": fn, **(more or {})}
    return ImageFigures(f"{patient}-{dice}", patient or str(dice), groups, 8, 12, values)


SETTINGS = EvaluateSettings(clean_up=False, resamples=200)


def summarise(rows: Iterable[ImageFigures], class_names: list[str], settings: EvaluateSettings) -> Evaluation:
    return summarise_images(FigureTable.of(rows), class_names, settings)


class TestSummarise:
    def test_counts_and_pooled(self) -> None:
        rows = [
            figures(0.5, patient="p", counts=(10, 5, 5)),
            figures(0.7, patient="p", counts=(0, 0, 0)),
            figures(0.0, patient="q", counts=(0, 0, 20), empty=1),
        ]
        found = summarise(rows, ["lung"], SETTINGS)
        assert (found["n"], found["n_empty"], found["patients"]) == (3, 1, 2)
        assert found["iou_pooled"] == pytest.approx(10 / 40)
        assert found["dice"]["mean"] == pytest.approx(0.4)
        assert found["groups"] == {}
        assert "clean_up" not in found

    def test_images_without_the_structure_are_reported_apart(self) -> None:
        """A model that predicts nothing would have a mean Dice of 0.5."""
        rows = [
            figures(0.9, patient="a", counts=(10, 1, 1)),
            figures(0.0, patient="b", counts=(0, 0, 20), empty=1),
            figures(1.0, patient="c", counts=(0, 0, 0)),
            figures(0.0, patient="d", counts=(0, 7, 0), empty=1),
        ]
        found = summarise(rows, ["lung"], SETTINGS)
        detection = found["detection"]
        assert detection["dice"]["mean"] == pytest.approx(0.45)
        assert (detection["positives"], detection["sensitivity"]) == (2, 0.5)
        assert (detection["negatives"], detection["false_alarms"]) == (2, 0.5)
        caption = figures_table({**found, "set_aside": []}).caption
        assert "found in 50.0%. Without it, 2 images: false alarms in 50.0%" in str(caption)
        assert "detection" not in summarise(rows[:2], ["lung"], SETTINGS)

    def test_pooled_of_nothing(self) -> None:
        assert summarise([figures(1.0, counts=(0, 0, 0))], ["lung"], SETTINGS)["iou_pooled"] == 1

    def test_intervals(self) -> None:
        rng = np.random.default_rng(0)
        rows = [figures(float(value), patient=f"p{at // 2}") for at, value in enumerate(rng.random(40))]
        found = summarise(rows, ["lung"], SETTINGS)
        for key in ("dice", "iou", "hd95", "assd"):
            assert 0 < found[key]["low"] < found[key]["mean"] < found[key]["high"] < 1
        alone = summarise([figures(0.25, patient="p"), figures(0.75, patient="p")], ["lung"], SETTINGS)
        assert alone["dice"] == {"mean": 0.5, "low": 0.5, "high": 0.5}

    def test_clean_up_stands_beside(self) -> None:
        cleaned = {f"clean_{key}": value for key, value in figures(1.0, counts=(4, 0, 0)).values.items()}
        row = figures(0.5, counts=(2, 2, 0), more=cleaned)
        found = summarise([row], ["lung"], EvaluateSettings(resamples=10))
        assert (found["dice"]["mean"], found["clean_up"]["dice"]["mean"]) == (0.5, 1.0)
        assert (found["iou_pooled"], found["clean_up"]["iou_pooled"]) == (0.5, 1.0)
        assert "groups" not in found["clean_up"]

    def test_millimetres_only_where_all_images_have_them(self) -> None:
        with_mm, without = figures(0.5, more={"hd95_mm": 2.0, "assd_mm": 1.0}), figures(0.6)
        assert summarise([with_mm], ["lung"], SETTINGS)["hd95_mm"]["mean"] == 2
        assert "hd95_mm" not in summarise([with_mm, without], ["lung"], SETTINGS)

    def test_several_classes(self) -> None:
        names = ["left", "right"]
        more: dict[str, float] = {
            **{"tp_left": 3, "fp_left": 1, "fn_left": 0, "tp_right": 1, "fp_right": 0, "fn_right": 1},
            **{"tp_background": 9, "fp_background": 0, "fn_background": 1},
            **{f"{key}_left": 0.5 for key in ("dice", "iou", "hd95", "assd")},
            **{f"{key}_right": 0.75 for key in ("dice", "iou", "hd95", "assd")},
        }
        found = summarise([figures(0.625, more=more)], names, SETTINGS)
        # 3 / 4 and 1 / 2; with the background's 9 / 10.
        assert found["iou_pooled"] == pytest.approx(0.625)
        assert found["iou_pooled_with_background"] == pytest.approx((0.75 + 0.5 + 0.9) / 3)
        assert found["classes"]["left"]["iou_pooled"] == pytest.approx(0.75)
        assert found["classes"]["right"]["dice"]["mean"] == 0.75
        assert found["classes"]["background"]["iou_pooled"] == pytest.approx(0.9)
        assert set(found["classes"]["background"]) == {"iou_pooled"}


class TestGroups:
    rows = (
        figures(0.2, sex="F", site="one", age="1"),
        figures(0.4, sex="F", site="one", age="2"),
        figures(0.9, sex="M", site="one", age="3"),
    )

    def test_columns_with_2_to_12_values(self) -> None:
        many = [replace(row, groups={**row.groups, "number": f"{at}"}) for at, row in enumerate(self.rows * 5)]
        found = summarise(many, ["lung"], SETTINGS)["groups"]
        # One value for `site`, 15 for `number`: neither is a subgroup.
        assert set(found) == {"sex", "age"}
        assert (found["sex"]["F"]["n"], found["sex"]["M"]["n"]) == (10, 5)
        assert found["sex"]["F"]["dice"]["mean"] == pytest.approx(0.3)
        assert found["sex"]["M"]["dice"]["mean"] == pytest.approx(0.9)

    def test_asked_for(self) -> None:
        settings = EvaluateSettings(clean_up=False, resamples=10, subgroups=["site"])
        assert set(summarise(self.rows, ["lung"], settings)["groups"]) == {"site"}
        settings = EvaluateSettings(clean_up=False, resamples=10, subgroups=[])
        assert summarise(self.rows, ["lung"], settings)["groups"] == {}

    def test_an_image_without_a_value_is_in_no_subgroup(self) -> None:
        rows = [*self.rows, figures(0.1, site="one", age="3")]
        found = summarise(rows, ["lung"], SETTINGS)
        assert sum(one["n"] for one in found["groups"]["sex"].values()) == 3
        assert found["n"] == 4

    def test_unknown_ones_are_named(self) -> None:
        settings = EvaluateSettings(clean_up=False, resamples=10, subgroups=["sex", "weight"])
        found = summarise(self.rows, ["lung"], settings)
        assert [*found["groups"]] == ["sex"]
        assert found["missing_subgroups"] == ["weight"]
        assert "no column weight (evaluate.subgroups)" in str(figures_table({**found, "set_aside": []}).caption)


def test_table_for_the_terminal() -> None:
    rows = [figures(0.2, sex="F"), figures(0.8, sex="M")]
    console = Console(record=True, file=io.StringIO(), width=200)
    console.print(figures_table({**summarise(rows, ["lung"], SETTINGS), "set_aside": []}))
    text = console.export_text()
    assert "sex = F" in text
    assert "0.5 (0.2-0.8)" in text


def test_images_of_shards_leave_out_what_does_not_count() -> None:
    shards = [
        Shard(file="a", split="test", rows=3, footer="", skip=(1,)),
        Shard(file="b", split="test", rows=1, footer=""),
    ]
    images = ShardImages.of(Location("/nowhere"), shards)
    assert [images.name(number)[0] for number in range(len(images))] == ["a:0", "a:2", "b:0"]
