"""Expected Dice and its range."""

import numpy as np
import pytest

from lungseg_ray.confidence.calibration import Calibration, Estimate, Measured, calibrate
from lungseg_ray.confidence.signals import SIGNALS


def measured(images: int, *, copies: int = 3, seed: int = 0) -> Measured:
    """Images whose error is the geometric mean of two of their signals, times a random factor."""
    draw = np.random.default_rng(seed)
    count = images * (1 + copies)
    signals = np.exp(draw.normal(-3, 0.7, (count, len(SIGNALS))))
    error = np.sqrt(signals[:, 0] * signals[:, 1]) * np.exp(draw.normal(0, 0.2, count))
    return Measured(
        signals=signals,
        dice=1 - np.clip(error, 0, 1),
        patient=(np.arange(count) // (1 + copies)).astype(np.str_),
        plain=np.arange(count) % (1 + copies) == 0,
    )


def estimates(calibration: Calibration, of: Measured) -> list[Estimate]:
    return [calibration.estimate(dict(zip(SIGNALS, row, strict=True))) for row in of.signals.tolist()]


def test_the_weights_are_found() -> None:
    found = calibrate(measured(200))
    assert found
    assert list(found.weights.values()) == pytest.approx([0.5, 0.5, 0], abs=0.06)


def test_nine_of_ten_new_images_lie_in_the_range() -> None:
    inside = []
    for seed in range(40):
        calibration, new = calibrate(measured(30, seed=seed)), measured(50, copies=0, seed=1000 + seed)
        assert calibration
        for one, dice in zip(estimates(calibration, new), new.dice, strict=True):
            assert one.low <= one.dice <= one.high
            inside.append(one.low <= dice <= one.high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_a_larger_signal_never_raises_the_expected_dice() -> None:
    draw = np.random.default_rng(0)
    noise = measured(40)
    # Here a larger signal is seen with better masks.
    calibration = calibrate(Measured(noise.signals, 1 - 0.001 / noise.signals[:, 0], noise.patient, noise.plain))
    assert calibration
    assert min(calibration.weights.values()) >= 0
    usual = dict(zip(SIGNALS, noise.signals[0].tolist(), strict=True))
    for name in SIGNALS:
        more = usual | {name: usual[name] * float(draw.uniform(1, 10))}
        assert calibration.estimate(more).dice <= calibration.estimate(usual).dice


def test_what_is_unusual_is_named() -> None:
    known = measured(50)
    calibration = calibrate(known)
    assert calibration
    middle = dict(zip(SIGNALS, np.median(known.signals, axis=0).tolist(), strict=True))
    assert calibration.estimate(middle).signal == ""
    assert not calibration.estimate(middle).unlike
    odd = calibration.estimate(middle | {"unlike": known.signals[:, 2].max() * 2})
    assert odd.unlike
    assert odd.reason == SIGNALS["unlike"]


@pytest.mark.parametrize("images", [0, 9])
def test_too_few_images(images: int) -> None:
    assert calibrate(measured(images)) is None


def test_without_a_range_any_dice_is_possible() -> None:
    calibration = calibrate(measured(10))
    assert calibration
    assert calibration.half_range is not None
    signals = dict.fromkeys(SIGNALS, 0.1)
    found = calibration.model_copy(update={"half_range": None}).estimate(signals)
    assert (found.low, found.high) == (0, 1)
    assert found.dice == calibration.estimate(signals).dice


def test_other_signals_are_refused() -> None:
    found = calibrate(measured(20))
    assert found
    with pytest.raises(ValueError, match="expected the signals"):
        Calibration.model_validate(found.model_dump() | {"weights": {"undecided": 1.0}})


def test_a_signal_that_never_changes_has_no_weight() -> None:
    images = measured(60)
    images.signals[:, 2] = 0.25
    found = calibrate(images)
    assert found
    assert list(found.weights.values()) == pytest.approx([0.5, 0.5, 0], abs=0.1)
