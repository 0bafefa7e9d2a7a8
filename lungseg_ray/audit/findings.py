"""Findings of an audit: sentences about what needs the user's attention in a corpus, the most important first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lungseg_ray.audit.duplicates import MOST, DuplicatePair
from lungseg_ray.audit.facts import ImageFacts
from lungseg_ray.audit.result import Audit
from lungseg_ray.corpus.record import REASONS, SPLITS, STUDY_KEY
from lungseg_ray.text import counted

Weight = Literal["mend", "look", "know"]
WEIGHTS: tuple[Weight, ...] = ("mend", "look", "know")
"""These are the weights of findings, the heaviest first.

"mend" marks what distorts results or leaves images out, "look" what may be a mistake, and "know" useful information.
"""
_USUAL = 0.7
"""A number of parts is the usual one if at least this share of the masks that contain the label has it."""
_TWELVE_BITS = 4095 / 65535 + 0.5 / 255
"""The intensity of a 12-bit image in a 16-bit file is at most this (0 to 1), which includes half a step of rounding."""
_CLIPPED = 0.2
"""A finding reports images with more than this share of black pixels, or of white pixels."""
_FLAT = 0.15
"""A finding reports images whose 1st and 99th percentiles of intensity (0 to 1) are less than this apart."""
_NAMED = 3
"""A finding names at most this number of images."""


@dataclass(frozen=True)
class Finding:
    """A sentence about a corpus, with its weight.

    Attributes:
        weight: One of `WEIGHTS`.
        text: The sentence, for the user.
    """

    weight: Weight
    text: str


def list_findings(audit: Audit) -> list[Finding]:
    """Lists all findings of an audit, the heaviest first.

    Args:
        audit: The result of the audit.

    Returns:
        The findings in the order of `WEIGHTS`.
    """
    found = [
        *_patients(audit),
        *_duplicates(audit.duplicates),
        *_unusable(audit),
        *_dark(audit.images),
        *_masks(audit),
        *_exposure(audit.images),
        *_splits(audit),
        *_drift(audit),
    ]
    return sorted(found, key=lambda one: WEIGHTS.index(one.weight))


def usual_parts(images: Iterable[ImageFacts], name: str) -> int | None:
    """Determines the number of parts that most masks have of a label.

    Args:
        images: Images with a mask.
        name: The name of the label.

    Returns:
        The number of parts that at least 70 % of the masks with the label have; None if there is no such number.
    """
    counts = Counter(one.labels[name].parts for one in images if one.labels[name].parts)
    number, masks = counts.most_common(1)[0] if counts else (0, 0)
    return number if masks and masks >= _USUAL * counts.total() else None


def column_counts(images: Sequence[ImageFacts]) -> dict[str, dict[str, Counter[str]]]:
    """Counts the images by column of the corpus, value and split.

    Args:
        images: The images to count.

    Returns:
        The counts by the name of the column, then by the value, then by the split ("none" for images without one). Only
        columns with 2 to 12 different values are included, and the key of the DICOM study is not.
    """
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for one in images:
        for name, value in one.groups.items():
            if name != STUDY_KEY:
                counts[name][value][one.split or "none"] += 1
    return {name: dict(sorted(values.items())) for name, values in sorted(counts.items()) if 2 <= len(values) <= 12}


def _drift(audit: Audit) -> Iterator[Finding]:
    if audit.drift is None:
        return
    for shift in audit.drift.shifts:
        yield Finding("look", f"{str(shift)[0].upper()}{str(shift)[1:]}")
    if not audit.drift.figures:
        yield Finding("know", "There are too few images to compare with those of training.")
    elif not audit.drift.shifts:
        yield Finding("know", f"The images are like the {counted(audit.drift.images, 'training image')} compared with.")


def _patients(audit: Audit) -> Iterator[Finding]:
    for patient, splits in list(audit.split_conflicts.items())[:_NAMED]:
        yield Finding("mend", f"Patient {patient} stands in {' and '.join(splits)}: correct the column split.")
    if len(audit.split_conflicts) > _NAMED:
        yield Finding("mend", f"{len(audit.split_conflicts) - _NAMED} more patients stand in several splits.")
    if audit.unsplit_reason:
        yield Finding("mend", audit.unsplit_reason)


def _duplicates(pairs: Sequence[DuplicatePair[ImageFacts]]) -> Iterator[Finding]:
    equal = [one for one in pairs if one.bits is None]
    # Images without masks are compared by their pixels, and are never in shards.
    same, unmarked = ([one for one in equal if _marked(one) is marked] for marked in (True, False))
    near = [one for one in pairs if one.bits is not None]
    apart, within = ([one for one in same if one.crosses_split is crosses] for crosses in (True, False))
    if apart:
        yield Finding(
            "mend",
            f"{counted(len(apart), 'pair')} of images with the same bytes {_stand(apart)} across splits "
            f"{_named_pairs(apart)}: the shards keep the first of each alone.",
        )
    if across := [one for one in near if one.crosses_split]:
        yield Finding(
            "mend",
            f"{counted(len(across), 'pair')} of images that look the same {_stand(across)} across splits "
            f"{_named_pairs(across)}: put them in one split, or give them one patient.",
        )
    if within:
        splits = list(dict.fromkeys(split for one in within for split in one.splits))
        yield Finding(
            "look",
            f"{counted(len(within), 'pair')} of images with the same bytes"
            + (f", within {' and '.join(splits)}" if splits else "")
            + f" {_named_pairs(within)}: the shards keep the first of each alone.",
        )
    if unmarked:
        yield Finding(
            "look",
            f"{counted(len(unmarked), 'pair')} of images {_have(unmarked)} the same pixels, and one or both of them no "
            f"mask {_named_pairs(unmarked)}.",
        )
    if together := [one for one in near if not one.crosses_split]:
        more = f", and maybe more: the search ended at {MOST}" if len(near) >= MOST else ""
        yield Finding(
            "look",
            f"{counted(len(together), 'pair')} of images {'looks' if len(together) == 1 else 'look'} the same "
            f"{_named_pairs(together)}, in one split{more}.",
        )
    if other := [one for one in same if one.first.mask_sha256 != one.second.mask_sha256]:
        yield Finding(
            "look",
            f"{counted(len(other), 'pair')} of images with the same bytes {_have(other)} different masks "
            f"{_named_pairs(other)}.",
        )


def _marked(pair: DuplicatePair[ImageFacts]) -> bool:
    return bool(pair.first.mask_sha256 and pair.second.mask_sha256)


def _unusable(audit: Audit) -> Iterator[Finding]:
    for reason, count in Counter(one.reason for one in audit.set_aside).most_common():
        yield Finding("mend", f"{counted(count, 'file')} cannot be used ({reason}): {REASONS.get(reason, reason)}.")
    if unlabelled := [one for one in audit.images if not one.labels]:
        yield Finding(
            "know", f"{counted(len(unlabelled), 'image')} {_have(unlabelled)} no mask and no use in training."
        )
    if audit.ignored:
        yield Finding("know", f"{counted(audit.ignored, 'file')} of other kinds {_lie(audit.ignored)} in the corpus.")


def _dark(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    deep = [one for one in images if one.bits == 16 and one.format != "dicom"]
    if deep and max(one.brightest for one in deep) <= _TWELVE_BITS:
        yield Finding(
            "mend",
            f"{counted(len(deep), '16-bit file')} {'uses' if len(deep) == 1 else 'use'} only values below 4096, and so "
            "are almost black: set corpus.white to 4095.",
        )


def _masks(audit: Audit) -> Iterator[Finding]:
    images = audit.labelled
    for name in audit.names:
        usual = usual_parts(images, name)
        marked = [one for one in images if one.labels[name].parts]
        if absent := len(images) - len(marked):
            yield Finding("look", f"{counted(absent, 'mask')} of {len(images)} {_have(absent)} no {name}.")
        if usual:
            odd = Counter(one.labels[name].parts for one in marked if one.labels[name].parts != usual)
            for parts, count in sorted(odd.items()):
                few = [one for one in marked if one.labels[name].parts == parts]
                yield Finding(
                    "look",
                    f"{counted(count, 'mask')} {_have(count)} {counted(parts, 'part')} of {name} where most have "
                    f"{usual} {_names(few)}.",
                )
        if specks := [one for one in marked if one.labels[name].specks]:
            total = sum(one.labels[name].specks for one in specks)
            yield Finding(
                "look",
                f"{counted(len(specks), 'mask')} {_have(specks)} specks of {name}, {total} in all {_names(specks)}.",
            )
        if touching := [one for one in marked if one.labels[name].touches]:
            edges = Counter(edge for one in touching for edge in one.labels[name].touches)
            told = ", ".join(f"{edge} {count}" for edge, count in edges.most_common())
            yield Finding(
                "look" if len(touching) < len(marked) / 2 else "know",
                f"{counted(len(touching), 'mask')} of {name} {'touches' if len(touching) == 1 else 'touch'} the image "
                f"border ({told}).",
            )
    shared = Counter(one.mask_sha256 for one in {one.image_sha256: one for one in images}.values())
    if copies := sum(count for count in shared.values() if count > 1):
        yield Finding("look", f"{copies} different images share their mask, byte for byte, with another.")


def _exposure(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    tests: tuple[tuple[str, Callable[[ImageFacts], bool]], ...] = (
        (f"more than {_CLIPPED * 100:.0f} % black pixels", lambda one: one.black > _CLIPPED),
        (f"more than {_CLIPPED * 100:.0f} % white pixels", lambda one: one.white > _CLIPPED),
        (f"little contrast: 98 % of the pixels within {_FLAT} of the range", lambda one: one.high - one.low < _FLAT),
    )
    for words, test in tests:
        if found := [one for one in images if test(one)]:
            yield Finding("look", f"{counted(len(found), 'image')} {_have(found)} {words} {_names(found)}.")
    for what, values in (
        ("bits per value", Counter(one.bits for one in images)),
        ("file formats", Counter(one.format for one in images)),
    ):
        if len(values) > 1:
            told = ", ".join(f"{value}: {count}" for value, count in values.most_common())
            yield Finding("know", f"The corpus mixes {what} ({told}).")
    if 0 < (known := sum(one.spacing is not None for one in images)) < len(images):
        yield Finding("know", f"The pixel spacing is known of {known} of {len(images)} images.")


def _splits(audit: Audit) -> Iterator[Finding]:
    there = {one.split for one in audit.labelled if one.split}
    if there:
        for split in SPLITS:
            if split not in there:
                yield Finding("mend" if split == "train" else "look", f"No image stands in {split}.")
    for name, values in column_counts(audit.labelled).items():
        for value, splits in values.items():
            if missing := [split for split in SPLITS if split in there and not splits[split]]:
                yield Finding(
                    "know",
                    f"{counted(splits.total(), 'image')} {_have(splits.total())} {name} {value}, none of them in "
                    f"{' or '.join(missing)}.",
                )


def _have(found: int | Sequence[object]) -> str:
    return "has" if (found if isinstance(found, int) else len(found)) == 1 else "have"


def _stand(found: Sequence[object]) -> str:
    return "stands" if len(found) == 1 else "stand"


def _lie(number: int) -> str:
    return "lies" if number == 1 else "lie"


def _names(found: Sequence[ImageFacts]) -> str:
    return _listed([one.image_id for one in found])


def _named_pairs(found: Sequence[DuplicatePair[ImageFacts]]) -> str:
    return _listed([f"{one.first.image_id} {'=' if one.bits is None else '~'} {one.second.image_id}" for one in found])


def _listed(names: Sequence[str]) -> str:
    return f"({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
