"""What public sets say of their patients, as groups: sex, and age in decades."""

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
    """Texts by image id; those that cannot be read, or are no texts, are left out.

    Raises:
        StorageError: if a bucket does not answer; then nothing is known of any.
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
    """Groups of an image of the National Library of Medicine: sex and age of its reading, finding of its name.

    A reading is `Patient's Sex: F`, `Patient's Age: 027Y` and a text, or `male 45yrs` and a text.
    """
    lines = texts.get(image_id, "").strip().splitlines()
    head = " ".join(line for number, line in enumerate(lines) if number == 0 or "age:" in line.lower())
    sex, age = _SEX.search(head), _AGE.search(head)
    found = {"sex": _SEXES[sex[1][0].lower()]} if sex else {}
    if age:
        found |= decade(int(age[1]) // _PER_YEAR[(age[2] or "y").lower()])
    return {**found, "finding": "tb" if image_id.endswith("_1") else "normal"}


def decade(years: int) -> dict[str, str]:
    """The group `age`: ten years, such as "20-29", since a report of each single age would say nothing."""
    if years > _OLDEST:
        return {}
    return {"age": "90+" if years >= 90 else f"{years // 10 * 10:02d}-{years // 10 * 10 + 9:02d}"}
