"""Texts for the user: what a corpus holds, what its shards hold, and which files are not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lungseg_ray.config import CorpusSettings, Settings
from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.pairs_picture import PAIRS_PICTURE
from lungseg_ray.corpus.record import REASONS, SPLITS, Record, SetAside
from lungseg_ray.corpus.split import assign_splits, missing_splits
from lungseg_ray.errors import UserError
from lungseg_ray.shards.index import ShardIndex
from lungseg_ray.storage import Location
from lungseg_ray.text import counted

SET_ASIDE = "set_aside.csv"
REFUSED = "refused.csv"
"""The files that cannot be used, where they are too many for shards to be made."""


@dataclass(frozen=True)
class Outcome:
    """The result of the job.

    Attributes:
        root: The folder of the shards.
        index: The index of the shards.
        set_aside: The files of the corpus that are not used, with the reasons.
        listing: The listing of the corpus.
        fresh: Whether the shards were built by this call; False if they were up to date.
    """

    root: Location
    index: ShardIndex
    set_aside: list[SetAside]
    listing: Listing
    fresh: bool


def describe_outcome(outcome: Outcome) -> str:
    """Returns a text for the user: the content of the shards, and the files that are not used."""
    index, listing = outcome.index, outcome.listing
    lines = [f"{outcome.root}: {'written' if outcome.fresh else 'up to date'}, layout {listing.recognised}"]
    lines += [f"  {line}" for line in index.recognition]
    for split, figures in index.splits.items():
        shares = ", ".join(f"{label}: {share:.1%}" for label, share in figures.label_shares.items())
        lines.append(
            f"{_split_line(split, figures.images, figures.patients)}; pixels by label {shares or '-'}; intensity "
            f"{figures.intensity_mean:.3f} +- {figures.intensity_std:.3f}"
        )
    lines += _beside(listing, index.warnings)
    if (outcome.root / PAIRS_PICTURE).exists():
        lines.append(f"Pairs to look at: {outcome.root / PAIRS_PICTURE}")
    if outcome.set_aside:
        lines += [f"Set aside, in {outcome.root / SET_ASIDE}:", set_aside_table(outcome.set_aside)]
    return "\n".join(lines)


def describe_listing(listing: Listing, settings: Settings) -> str:
    """Returns a text for the user: what a corpus holds, before any shard is built.

    Args:
        listing: The listing of the corpus.
        settings: The settings of the job.
    """
    found = what_was_found(listing, listing.corpus)
    found["warnings"] += listing.glances
    lines = [f"{settings.corpus.root}: {len(listing.records)} images with masks, layout {listing.recognised}"]
    lines += [f"  {line}" for line in found["recognition"]]
    try:
        records: Sequence[Record] = assign_splits(listing.records, settings.corpus.split)
    except UserError as error:
        records = []
        found["warnings"].append(str(error))
    for split in SPLITS:
        some = [record for record in records if record.split == split]
        if some:
            lines.append(_split_line(split, len(some), len({record.patient_id for record in some})))
    names = sorted({name for record in listing.records for name in record.groups})
    if names:
        lines.append(f"  groups: {', '.join(names)}")
    lines += _beside(listing, found["warnings"])
    if listing.set_aside:
        lines += ["Set aside:", set_aside_table(listing.set_aside)]
    return "\n".join(lines)


def _split_line(split: str, images: int, patients: int) -> str:
    return f"  {split:5s}  {counted(images, 'image')} of {counted(patients, 'patient')}"


def _beside(listing: Listing, warnings: Sequence[str]) -> list[str]:
    lines = []
    if listing.unlabelled:
        lines.append(f"  {counted(len(listing.unlabelled), 'image')} without a mask, unlabelled")
    if listing.ignored:
        lines.append(f"  {counted(listing.ignored, 'other file')} among images and masks, not read")
    return lines + [f"Warning: {line}" for line in warnings]


def set_aside_table(set_aside: list[SetAside], most: int = 10) -> str:
    """Returns a text that lists files set aside: the number of files for each reason, then the first files.

    Args:
        set_aside: The files.
        most: The largest number of files that are listed individually.
    """
    counts = Counter(one.reason for one in set_aside)
    lines = [f"  {count:6d}  {reason}: {REASONS.get(reason, '')}" for reason, count in counts.most_common()]
    lines += [f"  {one.uri}: {one.reason}: {one.detail}" for one in set_aside[:most]]
    if len(set_aside) > most:
        lines.append(f"  ... and {len(set_aside) - most} more")
    return "\n".join(lines)


def what_was_found(listing: Listing, settings: CorpusSettings) -> dict[str, list[str]]:
    """Returns what was found out about a corpus, and what the user should check, for the index.

    Args:
        listing: The listing of the corpus.
        settings: The settings of the corpus, with what was found out.

    Returns:
        Lines under `recognition`, and sentences under `warnings`.
    """
    recognition, warnings = list(listing.recognition), list(listing.warnings)
    for one, other in settings.mirrored:
        pair = f"{settings.class_names[one - 1]!r} and {settings.class_names[other - 1]!r}"
        recognition.append(f"labels: {pair} change places where an image is mirrored (corpus.mirror)")
    missing = missing_splits(listing.records, settings.split)
    if missing:
        recognition.append(f"splits: the corpus has no {' and no '.join(missing)}, which is taken from train")
    unknown, images = listing.unknown_patients, len(listing.records)
    if unknown > 1 and settings.patients == "auto":
        what = "which images are of one patient" if unknown == images else f"whose {unknown} of {images} images are"
        warnings.append(
            f"Nothing says {what}, so that each of them counts as a patient of its own. If patients have several "
            "images, the figures are too good: name them with --corpus.patients, or a table."
        )
    return {"recognition": recognition, "warnings": warnings}
