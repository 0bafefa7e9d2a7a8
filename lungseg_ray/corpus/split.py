"""Every patient gets one side of the split: train, val or test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lungseg_ray.config import SplitSettings
from lungseg_ray.corpus.record import SPLITS, Record, Split
from lungseg_ray.errors import UserError


def assign_splits(records: Sequence[Record], settings: SplitSettings) -> list[Record]:
    """Deals patients to the sides, so that no patient stands on two of them.

    Where the corpus prescribes a side for any image of a patient, all of that patient's images take it. The others go
    by sha256("<seed>:<patient>") as a number in [0, 1): below `test` to the test, then below `test + val` to
    validation, the rest to training; whether other patients come or go makes no difference.

    One exception, for tiny corpora: a side with a share that got nobody takes, from a side with two patients or more,
    the freely dealt patient whose number is nearest to its interval. A corpus that prescribes the side of every patient
    is left as it is.

    Args:
        records: in any order.
        settings: shares of patients, and the seed.

    Returns:
        The records in their order, each with its `split`.

    Raises:
        UserError: if the corpus puts a patient on two sides, or has too few patients for every side to get one.
    """
    sides = _one_side_each(records)
    free = {
        record.patient_id: _number(record.patient_id, settings.seed)
        for record in records
        if record.patient_id not in sides
    }
    bounds: dict[Split, tuple[float, float]] = {
        "test": (0.0, settings.test),
        "val": (settings.test, settings.test + settings.val),
        "train": (settings.test + settings.val, 1.0),
    }
    for patient, number in free.items():
        sides[patient] = next((side for side, (_, upper) in bounds.items() if number < upper), "train")
    if free:
        for side, (lower, upper) in bounds.items():
            if upper > lower and side not in sides.values():
                sides[_nearest(lower, upper, sides, free, side)] = side
    return [replace(record, split=sides[record.patient_id]) for record in records]


def prescribed(records: Iterable[Record]) -> dict[str, list[Split]]:
    """The sides on which the corpus puts each patient of whom it says so, in the order of `SPLITS`; mostly one."""
    found: dict[str, set[Split]] = {}
    for record in records:
        if record.split is not None:
            found.setdefault(record.patient_id, set()).add(record.split)
    return {patient: [side for side in SPLITS if side in sides] for patient, sides in found.items()}


def _one_side_each(records: Sequence[Record]) -> dict[str, Split]:
    found = prescribed(records)
    torn = {patient: sides for patient, sides in found.items() if len(sides) > 1}
    if torn:
        shown = "; ".join(f"{patient}: {', '.join(sides)}" for patient, sides in sorted(torn.items())[:5])
        raise UserError(
            f"The corpus puts {len(torn)} patient(s) on more than one side of the split ({shown}). Expected one side "
            "for all images of a patient: correct the split column, or leave it empty to have the patients dealt."
        )
    return {patient: side for patient, (side,) in found.items()}


def _number(patient: str, seed: int) -> float:
    # 48 bits, which a float holds exactly.
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:6], "big") / 2**48


def _nearest(lower: float, upper: float, sides: dict[str, Split], free: dict[str, float], side: Split) -> str:
    patients = Counter(sides.values())
    donors = [
        (max(lower - number, number - upper), patient)
        for patient, number in free.items()
        if patients[sides[patient]] > 1
    ]
    if not donors:
        raise UserError(
            f"Too few patients for the split: found {len(sides)}, and none is left for {side}. Expected at least one "
            f"for every side with a share, 3 with validation and test: add images, or set the share of {side} to 0."
        )
    return min(donors)[1]
