"""From the signals of an image to an expected Dice with a range, calibrated on validation images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from scipy.optimize import lsq_linear

from lungseg_ray.confidence.signals import SIGNALS

Numbers = npt.NDArray[np.float64]

COVERAGE = 0.9
"""The share of images whose Dice is to lie in the range."""
_LEAST_ERROR = 0.005
"""Added to 1 - Dice before its logarithm is taken, so that masks that are almost right do not decide the weights."""
_LEAST_SIGNAL = 1e-3
"""The same for signals."""
_LEAST_SPREAD = 1e-6
"""A signal whose logarithm has a smaller standard deviation is taken for constant."""
_RIDGE = 1.0
_FOLDS = 10
FEWEST = 10
"""The images with known Dice below which nothing is calibrated."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is expected of a mask.

    Attributes:
        dice: The expected Dice, 0 to 1.
        low: The lower end of its range.
        high: The upper end.
        unlike: Whether the image is unlike those of training, for which the range is not vouched for.
        signal: The name of the signal that speaks most against the mask; empty if none is unusual.
    """

    dice: float
    low: float
    high: float
    unlike: bool
    signal: str

    def columns(self) -> dict[str, float]:
        """Returns the numbers as columns of a table; `unlike` is 0 or 1."""
        return {
            "expected_dice": self.dice,
            "expected_low": self.low,
            "expected_high": self.high,
            "unlike": float(self.unlike),
        }

    @property
    def reason(self) -> str:
        """What speaks most against the mask, in words; empty if nothing is unusual."""
        return SIGNALS.get(self.signal, "")


@dataclass(frozen=True)
class Measured:
    """The signals of images with a known Dice.

    Attributes:
        signals: (n, signals), those of an image or of a changed copy of it, in the order of `SIGNALS`.
        dice: (n,), its Dice, 0 to 1.
        patient: (n,), the patient of the image.
        plain: (n,), whether it is the image as it is.
    """

    signals: Numbers
    dice: Numbers
    patient: npt.NDArray[np.str_]
    plain: npt.NDArray[np.bool_]


class Calibration(BaseModel):
    """An expected error that is a product of powers of the signals, and its range.

    Attributes:
        weights: The power of each signal, by its name, 0 or more: a larger signal never means a better mask.
        offset: The logarithm of the error where each signal is 1.
        half_range: Half the length of the range of the logarithm; None where there are too few images for a range.
        usual: The value of each signal that nine of ten validation images do not exceed.
        unlike: The signal `unlike` above which an image is unlike those of training: the largest of validation.
        images: The number of validation images.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    weights: dict[str, float]
    offset: float
    half_range: float | None
    usual: dict[str, float]
    unlike: float
    images: int

    @model_validator(mode="after")
    def _signals_known(self) -> Calibration:
        if self.weights.keys() != SIGNALS.keys() or self.usual.keys() != SIGNALS.keys():
            raise ValueError(f"expected the signals {', '.join(SIGNALS)}")
        return self

    def estimate(self, signals: Mapping[str, float]) -> Estimate:
        """Returns what is expected of a mask.

        Args:
            signals: The signals of the image, by name.
        """
        logs = {name: math.log(value + _LEAST_SIGNAL) for name, value in signals.items()}
        error = self.offset + sum(self.weights[name] * logs[name] for name in SIGNALS)
        half = math.inf if self.half_range is None else self.half_range
        excess = {name: logs[name] - math.log(self.usual[name] + _LEAST_SIGNAL) for name in SIGNALS}
        worst = max(excess, key=lambda name: excess[name])
        return Estimate(
            dice=_dice(error),
            low=_dice(error + half),
            high=_dice(error - half),
            unlike=signals["unlike"] > self.unlike,
            signal=worst if excess[worst] > 0 else "",
        )


def calibrate(measured: Measured) -> Calibration | None:
    """Fits an expected Dice, and a range in which the Dice of nine of ten images lies.

    The powers are the weights of a ridge regression of log(1 - Dice) on the logarithms of the signals. The range is
    conformal: a quantile of its errors on the images as they are, each of which was left out of the fit together with
    its copies and all other images of the patient (Vovk, Cross-conformal predictors, Annals of Mathematics and
    Artificial Intelligence 2015, arXiv:1208.0806).

    Args:
        measured: The signals and the Dice of validation images and of changed copies of them.

    Returns:
        The calibration; None for fewer than ten images, or a single patient.
    """
    patients, images = np.unique(measured.patient), int(measured.plain.sum())
    if images < FEWEST or len(patients) < 2:
        return None
    x, y = np.log(measured.signals + _LEAST_SIGNAL), np.log(1 - measured.dice + _LEAST_ERROR)
    weights, offset = _fitted(x, y)
    errors = np.zeros(len(y))
    for fold in range(min(_FOLDS, len(patients))):
        out = np.isin(measured.patient, patients[fold::_FOLDS])
        of_fold, base = _fitted(x[~out], y[~out])
        errors[out] = np.abs(y[out] - x[out] @ of_fold - base)
    found = np.sort(errors[measured.plain])
    rank = math.ceil((len(found) + 1) * COVERAGE)
    plain = measured.signals[measured.plain]
    return Calibration(
        weights=dict(zip(SIGNALS, weights.tolist(), strict=True)),
        offset=offset,
        half_range=float(found[rank - 1]) if rank <= len(found) else None,
        usual=dict(zip(SIGNALS, np.quantile(plain, COVERAGE, axis=0).tolist(), strict=True)),
        unlike=float(plain[:, list(SIGNALS).index("unlike")].max()),
        images=images,
    )


def _fitted(x: Numbers, y: Numbers) -> tuple[Numbers, float]:
    """Returns the weights of a ridge regression, none of them negative, and its offset."""
    centre, scale = x.mean(axis=0), x.std(axis=0)
    # A signal that never changes says nothing; what rounding leaves of its weight would be multiplied without bound.
    constant = scale < _LEAST_SPREAD
    scale = np.where(constant, 1, scale)
    rows = np.vstack([(x - centre) / scale, math.sqrt(_RIDGE) * np.eye(x.shape[1])])
    found = lsq_linear(rows, np.concatenate([y - y.mean(), np.zeros(x.shape[1])]), bounds=(0, np.inf))
    weights: Numbers = np.where(constant, 0, found.x / scale)
    return weights, float(y.mean() - centre @ weights)


def _dice(log_error: float) -> float:
    error = math.exp(min(log_error, 1.0)) - _LEAST_ERROR
    return 1 - min(max(error, 0.0), 1.0)
