import math
import warnings

import numpy as np
import pytest
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.numerics.metrics import (
    Counts,
    ValidationSums,
    bootstrap_interval,
    clean_up,
    clean_up_labels,
    confusion_counts,
    dice,
    iou,
    predict_labels,
    probabilities,
    surface_distances,
)


def blank(height: int = 8, width: int = 8) -> np.ndarray:
    return np.zeros((height, width), dtype=bool)


def test_binary_probabilities_and_labels() -> None:
    logits = torch.tensor([[[[0.0, math.log(3), -math.log(3)]]]])  # (1, 1, 1, 3)
    probability = probabilities(logits.half())
    assert probability.dtype == torch.float32
    assert probability.flatten().tolist() == pytest.approx([0.5, 0.75, 0.25], abs=1e-3)
    assert predict_labels(probability).tolist() == [[[0, 1, 0]]]
    assert predict_labels(probability, threshold=0.2).tolist() == [[[1, 1, 1]]]


def test_multiclass_probabilities_and_labels() -> None:
    logits = torch.tensor([[[[0.0, 5.0]], [[math.log(2), 0.0]], [[0.0, 0.0]]]])  # (1, 3, 1, 2)
    probability = probabilities(logits)
    assert probability[0, :, 0, 0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    labels = predict_labels(probability)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[1, 0]]]


def test_binary_counts_leave_ignored_pixels_out() -> None:
    # (2, 1, 6): tp, fp, fn, tn and two ignored; then an image without a positive pixel
    prediction = torch.tensor([[[1, 1, 0, 0, 1, 0]], [[0, 0, 0, 0, 0, 0]]])
    target = torch.tensor([[[1, 0, 1, 0, 255, 255]], [[0, 0, 0, 0, 0, 255]]], dtype=torch.uint8)
    counts = confusion_counts(prediction, target, classes=1)
    assert [count.tolist() for count in counts] == [[[1], [0]], [[1], [0]], [[1], [0]]]
    assert dice(counts).tolist() == [[0.5], [1.0]]
    assert iou(counts).tolist() == [[1 / 3], [1.0]]


def test_multiclass_counts_leave_the_background_out() -> None:
    # (1, 1, 6)
    prediction = torch.tensor([[[0, 1, 1, 2, 2, 0]]])
    target = torch.tensor([[[0, 1, 2, 2, 255, 1]]], dtype=torch.uint8)
    counts = confusion_counts(prediction, target, classes=4)
    assert counts.tp.dtype == torch.int64
    assert counts.tp.tolist() == [[1, 1, 0]]
    assert counts.fp.tolist() == [[1, 0, 0]]
    assert counts.fn.tolist() == [[1, 1, 0]]
    assert dice(counts).tolist() == [[0.5, 2 / 3, 1.0]]


def test_one_empty_side_is_zero() -> None:
    counts = Counts(tp=torch.tensor([[0], [0]]), fp=torch.tensor([[3], [0]]), fn=torch.tensor([[0], [3]]))
    assert dice(counts).tolist() == [[0.0], [0.0]]
    assert iou(counts).tolist() == [[0.0], [0.0]]


def test_validation_sums_are_means_over_images() -> None:
    # (2, 1, 1, 4): image 1 has tp 1, fp 1, fn 1; image 2 has tp 3
    logits = torch.tensor([[[[20.0, 20.0, -20.0, -20.0]]], [[[20.0, 20.0, 20.0, -20.0]]]])
    target = torch.tensor([[[1, 0, 1, 0]], [[1, 1, 1, 0]]], dtype=torch.uint8)
    sums = ValidationSums(classes=1)
    sums.update(logits, target)
    result = sums.result()
    assert result["n"] == 2
    assert result["iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert result["dice"] == pytest.approx((1 / 2 + 1) / 2)
    assert result["iou_pooled"] == pytest.approx(4 / 6)
    assert result["loss_dice"] == pytest.approx((0.5 + 0) / 2, abs=1e-6)
    # two of the eight pixels are off by 20
    assert result["loss_bce"] == pytest.approx(5, abs=1e-6)
    assert result["loss"] == pytest.approx(result["loss_dice"] + 0.8 * result["loss_bce"], abs=1e-12)


def test_dice_of_positives_is_the_mean_over_classes_of_the_images_that_have_them() -> None:
    # Labels 1 and 2. All three images have label 1, which is found; the last has label 2, too, which is not.
    target = torch.tensor([[[1, 0]], [[1, 0]], [[1, 2]]], dtype=torch.uint8)
    prediction = torch.tensor([[[1, 0]], [[1, 0]], [[1, 0]]])
    logits = 20 * torch.nn.functional.one_hot(prediction, 3).permute(0, 3, 1, 2).float()
    sums = ValidationSums(classes=3)
    sums.update(logits, target)
    assert sums.result()["dice"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert sums.result()["dice_positives"] == pytest.approx((1 + 0) / 2)
    # A class that no image has is left out.
    rest = ValidationSums(classes=3)
    rest.update(logits[:2], target[:2])
    assert rest.result()["dice_positives"] == 1
    none = ValidationSums(classes=3)
    none.update(logits[:2], torch.zeros_like(target[:2]))
    assert "dice_positives" not in none.result()


@pytest.mark.parametrize("classes", [1, 3])
def test_uneven_workers_add_up_to_one(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(11, classes, 16, 16, generator=generator)
    target = torch.randint(0, max(classes, 2), (11, 16, 16), generator=generator, dtype=torch.uint8)
    target[:, 5] = IGNORE_LABEL
    alone = ValidationSums(classes=classes)
    alone.update(logits, target)
    total = torch.zeros_like(alone.as_tensor())
    for start, stop in [(0, 1), (1, 8), (8, 11)]:
        worker = ValidationSums(classes=classes)
        for image in range(start, stop, 2):
            batch = slice(image, min(image + 2, stop))
            worker.update(logits[batch], target[batch])
        total += worker.as_tensor()
    joined = ValidationSums(classes=classes)
    joined.load(total)
    assert joined.result()["n"] == 11
    assert joined.result() == pytest.approx(alone.result(), abs=1e-12, rel=0)


def test_a_worker_without_images_adds_nothing_and_nobody_with_images_is_an_error() -> None:
    sums = ValidationSums(classes=1)
    assert sums.as_tensor().eq(0).all()
    with pytest.raises(UserError, match="holds no image"):
        sums.result()


def test_surface_distances_of_parallel_lines() -> None:
    truth, prediction = blank(), blank()
    truth[:, 2] = True
    prediction[:, 5] = True
    assert surface_distances(prediction, truth) == pytest.approx((3, 3, False))
    assert surface_distances(prediction, truth, spacing=(2.0, 0.5)) == pytest.approx((1.5, 1.5, False))
    assert surface_distances(prediction.T, truth.T, spacing=(2.0, 0.5)) == pytest.approx((6, 6, False))


def test_surface_distances_of_unequal_outlines() -> None:
    truth, prediction = blank(), blank()
    truth[0, 0] = True
    prediction[0, [0, 4]] = True
    # prediction to truth: 0 and 4; truth to prediction: 0
    expected = pytest.approx((0.95 * 4, 4 / 3, False))
    assert surface_distances(prediction, truth) == expected
    assert surface_distances(truth, prediction) == expected


def test_surface_distances_measure_outlines_not_areas() -> None:
    truth, prediction = blank(), blank()
    truth[1:6, 1:6] = True
    prediction[2:5, 2:5] = True
    # outline of the truth: 16 pixels, 4 of them corners at sqrt(2); of the prediction: 8 pixels at 1
    assert surface_distances(prediction, truth) == pytest.approx(
        (math.sqrt(2), (12 + 4 * math.sqrt(2) + 8) / 24, False)
    )


def test_surface_distances_with_an_empty_side() -> None:
    some = blank(6, 8)
    some[2, 2] = True
    assert surface_distances(blank(6, 8), blank(6, 8)) == (0, 0, False)
    assert surface_distances(some, blank(6, 8)) == (10, 10, True)
    assert surface_distances(blank(6, 8), some, spacing=(2.0, 2.0)) == (20, 20, True)


def test_surface_distances_take_read_only_and_flipped_arrays_in_silence() -> None:
    truth = blank()
    truth[1, 1] = True
    flipped = truth[::-1, ::-1]
    truth.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surface_distances(flipped, truth).hd95 == pytest.approx(5 * math.sqrt(2))


def test_surface_distances_refuse_different_shapes() -> None:
    with pytest.raises(UserError, match=r"\(4, 4\).*\(8, 8\)"):
        surface_distances(blank(), blank(4, 4))


def test_clean_up_keeps_the_largest_components_and_fills_holes() -> None:
    mask = blank(10, 20)
    mask[1:8, 1:6] = True
    mask[3:5, 3] = False  # a hole
    mask[1:7, 9:14] = True
    mask[8:10, 16:19] = True  # the third largest
    before = mask.copy()
    expected = blank(10, 20)
    expected[1:8, 1:6] = True
    expected[1:7, 9:14] = True
    assert np.array_equal(clean_up(mask), expected)
    assert np.array_equal(mask, before)
    expected[1:7, 9:14] = False
    assert np.array_equal(clean_up(mask, components=1), expected)


def test_clean_up_of_little_or_nothing() -> None:
    one = blank()
    one[2, 2] = True
    assert np.array_equal(clean_up(one), one)
    assert np.array_equal(clean_up(blank()), blank())


def test_bootstrap_draws_patients_with_all_their_images() -> None:
    # Resamples of two patients: a a (1/4) has mean 0, a b (1/2) 1/4, b b (1/4) 1.
    values, patients = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    assert bootstrap_interval(values, patients) == (0.25, 0, 1)
    assert bootstrap_interval(values, patients, confidence=0.3) == (0.25, 0.25, 0.25)


def test_bootstrap_of_many_patients_has_the_width_of_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(values, np.arange(400))
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.mean == pytest.approx(half_width, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(half_width, rel=0.1)
    assert bootstrap_interval(values, np.arange(400)) == interval
    assert bootstrap_interval(values, np.arange(400), seed=1) != interval


def test_interval_of_very_many_patients_is_the_limit_of_the_drawn_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patients with 1 to 4 images, whose figures are more alike than those of others.
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(500), generator.integers(1, 5, 500))
    values = 0.9 + 0.05 * generator.standard_normal(500)[patients] + 0.02 * generator.standard_normal(len(patients))
    drawn = bootstrap_interval(values, patients, resamples=20_000)
    monkeypatch.setattr(metrics, "MOST_DRAWN", 100)
    limit = bootstrap_interval(values, patients)
    assert limit.mean == drawn.mean
    assert limit.high - limit.low == pytest.approx(drawn.high - drawn.low, rel=0.03)
    assert limit.low == pytest.approx(drawn.low, abs=3e-4)


def test_bootstrap_of_one_patient_has_no_width() -> None:
    assert bootstrap_interval([0.5, 0.7], ["a", "a"]) == pytest.approx((0.6, 0.6, 0.6))


@pytest.mark.parametrize(("values", "patients"), [([], []), ([1.0, 2.0], ["a"])])
def test_bootstrap_refuses_what_does_not_match(values: list[float], patients: list[str]) -> None:
    with pytest.raises(UserError, match="one patient per image"):
        bootstrap_interval(values, patients)


def test_clean_up_labels_keeps_what_lies_in_a_hole() -> None:
    # (5, 7): a ring of label 1 around a 1-pixel nucleus of label 2; the second ring has an empty hole, which is filled.
    labels = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 1, 1, 1],
            [1, 2, 1, 0, 1, 0, 1],
            [1, 1, 1, 0, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    expected = labels.copy()
    expected[2, 5] = 1
    np.testing.assert_array_equal(clean_up_labels(labels, classes=2), expected)


def test_the_best_threshold_is_found() -> None:
    # In the first image 0.4 separates best, in the second 0.6: the mean decides.
    probability = torch.tensor([[0.2, 0.45, 0.55, 0.9], [0.2, 0.45, 0.55, 0.9]]).reshape(2, 1, 1, 4)
    target = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.uint8).reshape(2, 1, 4)
    sums = ValidationSums(classes=1, candidates=(0.3, 0.4, 0.5, 0.6))
    sums.update(probability.logit(), target)
    # Dice: 0.3 and 0.4: 1, 0.8; 0.5: 0.8, 1; 0.6: 0.5, 0.67. Of equal ones, that next to 0.5.
    assert sums.result()["threshold"] == 0.5
    alone = ValidationSums(classes=1, candidates=(0.3, 0.4, 0.5, 0.6))
    alone.update(probability[:1].logit(), target[:1])
    assert alone.result()["threshold"] == 0.4
    assert "threshold" not in ValidationSums(classes=1)._MEANS
    joined = ValidationSums(classes=1, candidates=(0.3, 0.4, 0.5, 0.6))
    joined.load(sums.as_tensor() + alone.as_tensor())
    assert joined.result()["threshold"] == 0.4
