"""Reads the clinical data of public sets as groups for evaluation: sex, age in decades, and finding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from lungseg_ray.corpus.layouts.tree import Entry, FilesById
from lungseg_ray.storage import REQUESTS, StorageError

_MOST_BYTES = 1 << 20
_SEX = re.compile(r"\b(female|femal|male|other|f|m|o)(?![a-z])", re.IGNORECASE)
_AGE = re.compile(r"(?<!\d)(\d{1,4})\s*(y|m|w|d)?", re.IGNORECASE)
_PER_YEAR = {"y": 1, "m": 12, "w": 52, "d": 365}
_SEXES = {"f": "female", "m": "male", "o": "other"}
_OLDEST = 120


def read_texts(files: FilesById) -> dict[str, str]:
    """Reads the texts of the clinical readings.

    Args:
        files: The files by image id, of which the first of each id is read.

    Returns:
        The texts by image id; empty for a file that cannot be read or is larger than 1 MiB.

    Raises:
        StorageError: If a bucket does not answer, because then no text is known.
    """

    def text(entry: Entry) -> str:
        if entry.size > _MOST_BYTES:
            return ""
        try:
            return entry.place.read_bytes().decode(errors="replace")
        except StorageError:
            raise
        except OSError:
            return ""

    with ThreadPoolExecutor(REQUESTS) as pool:
        return dict(zip(files, pool.map(text, (found[0] for found in files.values())), strict=True))


def reading_groups(image_id: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the groups of an image of the National Library of Medicine.

    A reading is `Patient's Sex: F`, `Patient's Age: 027Y` and a text, or `male 45yrs` and a text.

    Args:
        image_id: The id of the image, which ends in `_1` for tuberculosis and in `_0` otherwise.
        texts: The readings by image id.

    Returns:
        The groups `sex` and `age`, as far as the reading contains them, and `finding` ("tb" or "normal").
    """
    lines = texts.get(image_id, "").strip().splitlines()
    head = " ".join(line for number, line in enumerate(lines) if number == 0 or "age:" in line.lower())
    sex, age = _SEX.search(head), _AGE.search(head)
    found = {"sex": _SEXES[sex[1][0].lower()]} if sex else {}
    if age:
        found |= decade(int(age[1]) // _PER_YEAR[(age[2] or "y").lower()])
    return {**found, "finding": "tb" if image_id.endswith("_1") else "normal"}


def decade(years: int) -> dict[str, str]:
    """Returns the group `age` as a decade, such as "20-29", because results for single years would not be meaningful.

    Args:
        years: The age, years.

    Returns:
        The group `age`, "90+" from 90 years on; no group above 120 years, which is not a plausible age.
    """
    if years > _OLDEST:
        return {}
    return {"age": "90+" if years >= 90 else f"{years // 10 * 10:02d}-{years // 10 * 10 + 9:02d}"}
