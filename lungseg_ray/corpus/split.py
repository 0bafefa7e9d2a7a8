"""Assigns every patient to one split: train, val or test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lungseg_ray.config import SplitSettings
from lungseg_ray.corpus.record import SPLITS, Record, Split
from lungseg_ray.errors import UserError


def assign_splits(records: Sequence[Record], settings: SplitSettings) -> list[Record]:
    """Assigns patients to splits, so that no patient is in two of them.

    If the corpus prescribes a split for any image of a patient, all images of that patient get it. All other patients
    are assigned by sha256("<seed>:<patient>") as a number in [0, 1): numbers below `test` to test, then numbers below
    `test + val` to val, and the rest to train. Adding or removing other patients does not change the assignment.

    If the corpus prescribes a split for every patient but has no val, val is taken from the patients of train in the
    same way, since training needs it; if it prescribes nothing but train, so is test.

    There is one exception, for tiny corpora. A split with a share above 0 that has no patient takes one from a split
    with two or more patients: of those whose split the corpus does not prescribe, the patient whose number is nearest
    to its interval. If the corpus prescribes the split of every patient, nothing is changed.

    Args:
        records: The records, in any order.
        settings: The shares of patients for val and test, and the seed.

    Returns:
        The records in the order of the input, each with its `split`.

    Raises:
        UserError: If the corpus prescribes two splits for a patient, or has too few patients for every split to get
            one.
    """
    splits = _prescribed_split(records)
    for patient in _shared_out(records, splits, settings):
        del splits[patient]
    taken = set(splits.values())
    free = {
        record.patient_id: _number(record.patient_id, settings.seed)
        for record in records
        if record.patient_id not in splits
    }
    bounds: dict[Split, tuple[float, float]] = {
        "test": (0.0, settings.test),
        "val": (settings.test, settings.test + settings.val),
        "train": (settings.test + settings.val, 1.0),
    }
    given = {record.patient_id for record in records if record.split is not None}
    for patient, number in free.items():
        split: Split = next((split for split, (_, upper) in bounds.items() if number < upper), "train")
        # Of the patients for training, none goes to a split that the corpus has.
        splits[patient] = "train" if patient in given and split in taken else split
    if free:
        for wanted, (lower, upper) in bounds.items():
            if upper > lower and wanted not in splits.values():
                splits[_nearest(lower, upper, splits, free, wanted)] = wanted
    return [replace(record, split=splits[record.patient_id]) for record in records]


def prescribed(records: Iterable[Record]) -> dict[str, list[Split]]:
    """Collects the splits that the corpus prescribes for each patient.

    Args:
        records: The records, in any order.

    Returns:
        The splits by patient, in the order of `SPLITS`; more than one is an error of the corpus. Patients without a
        prescribed split are left out.
    """
    found: dict[str, set[Split]] = {}
    for record in records:
        if record.split is not None:
            found.setdefault(record.patient_id, set()).add(record.split)
    return {patient: [split for split in SPLITS if split in splits] for patient, splits in found.items()}


def _prescribed_split(records: Sequence[Record]) -> dict[str, Split]:
    found = prescribed(records)
    conflicts = {patient: splits for patient, splits in found.items() if len(splits) > 1}
    if conflicts:
        shown = "; ".join(f"{patient}: {', '.join(splits)}" for patient, splits in sorted(conflicts.items())[:5])
        raise UserError(
            f"The corpus puts {len(conflicts)} patient(s) in more than one split ({shown}). Expected one split for all "
            "images of a patient: correct the folders or the column that say it. If several people share a name, say "
            "--corpus.patients none, or give a pattern that tells them apart."
        )
    return {patient: split for patient, (split,) in found.items()}


def missing_splits(records: Iterable[Record], settings: SplitSettings) -> list[Split]:
    """Returns the splits that are taken from train, because a corpus that prescribes all splits lacks them.

    Args:
        records: The records, before splits are assigned.
        settings: The shares of patients for val and test.

    Returns:
        Some of val and test; empty if the corpus has val, or leaves any patient free.
    """
    found = {record.split for record in records}
    shares: dict[Split, float] = {"val": settings.val, "test": settings.test}
    if found == {"train"}:
        return [split for split, share in shares.items() if share > 0]
    return ["val"] if found == {"train", "test"} and settings.val > 0 else []


def _shared_out(records: Sequence[Record], splits: Mapping[str, Split], settings: SplitSettings) -> list[str]:
    """Returns the patients for training from whom missing splits are taken."""
    if not missing_splits(records, settings):
        return []
    return [patient for patient, split in splits.items() if split == "train"]


def _number(patient: str, seed: int) -> float:
    # A float represents 48 bits exactly.
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:6], "big") / 2**48


def _nearest(lower: float, upper: float, splits: dict[str, Split], free: dict[str, float], split: Split) -> str:
    patients = Counter(splits.values())
    donors = [
        (max(lower - number, number - upper), patient)
        for patient, number in free.items()
        if patients[splits[patient]] > 1
    ]
    if not donors:
        advice = "set --corpus.split.test 0, since training needs validation" if len(splits) == 2 else "add images"
        raise UserError(
            f"Too few patients for the split: found {len(splits)}, and none is left for {split}. Expected 3, one each "
            f"to train, to validate and to test, or 2 without a test: {advice}. If the images are of more people than "
            "their files or names say, say --corpus.patients none."
        )
    return min(donors)[1]
