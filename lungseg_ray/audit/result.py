"""The result of an audit, and its form as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lungseg_ray.audit.drift import Drift
from lungseg_ray.audit.duplicates import DuplicatePair
from lungseg_ray.audit.facts import ImageFacts
from lungseg_ray.audit.outliers import Outlier
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.record import Record, SetAside
from lungseg_ray.storage import Location
from lungseg_ray.text import free_name

PAGE = "audit.html"
"""The page of the audit has this file name."""
TABLE = "audit.csv"
"""The table of the audit has this file name."""

_PLAIN = ("image_id", "patient_id", "split", "place", "format", "height", "width", "bits")
_FIGURES = ("mean", "std", "low", "high", "brightest", "black", "white", "phash", "image_sha256", "mask_sha256")
_MARKED = ("share", "parts", "specks", "ratio", "touches", "left", "row", "column")


@dataclass(frozen=True)
class Audit:
    """The result of the audit of a corpus.

    Attributes:
        corpus: The settings of the corpus.
        longer_side: Limit of the longer side, to which larger images were reduced, pixels.
        layout: The name of the corpus layout, and how it was recognised.
        records: The records of all listed images, by `image_id`.
        images: The readable images, with and without a mask, ordered by `image_id`.
        set_aside: The files that cannot be used, ordered by reason and `image_id`.
        ignored: Number of files of a kind that is not read.
        split_conflicts: The patients that the corpus assigns to several splits, each with these splits.
        unsplit_reason: The reason why the other patients could not be assigned to splits; empty if they were assigned.
        duplicates: The pairs of images that have the same bytes or look the same.
        outliers: The images that differ from the rest, the farthest first.
        drift: How they differ from the images of other shards; None if there are none to compare with.
    """

    corpus: CorpusSettings
    longer_side: int
    layout: str
    records: Mapping[str, Record]
    images: Sequence[ImageFacts]
    set_aside: Sequence[SetAside]
    ignored: int
    split_conflicts: Mapping[str, Sequence[str]]
    unsplit_reason: str
    duplicates: Sequence[DuplicatePair[ImageFacts]]
    outliers: Sequence[Outlier]
    drift: Drift | None = None

    @cached_property
    def labelled(self) -> list[ImageFacts]:
        """The images that have a mask."""
        return [one for one in self.images if one.labels]

    @property
    def patients(self) -> int:
        """Number of patients with at least one readable image."""
        return len({one.patient_id for one in self.images})

    @property
    def names(self) -> list[str]:
        """The names of the labels, from label 1 on."""
        return self.corpus.class_names


def write_table(audit: Audit, place: Location) -> None:
    """Writes a CSV table with one row for each readable image and one for each file that was set aside.

    The columns have the names of the fields of `ImageFacts`, `LabelFacts` and `SetAside`. If there are several labels,
    the columns of each label end in its name. A column of the corpus whose name is already in use starts with `group_`.

    Args:
        audit: The result of the audit.
        place: The location of the CSV file.
    """
    several = len(audit.names) > 1
    figures = [f"{key}_{name}" if several else key for name in audit.names for key in _MARKED]
    own = [*_PLAIN, "spacing_row", "spacing_column", *_FIGURES, *figures, "reason", "detail"]
    groups = {name: free_name(name, own) for one in audit.images for name in one.groups}
    rows: list[dict[str, object]] = []
    for one in audit.images:
        row: dict[str, object] = {key: getattr(one, key) for key in (*_PLAIN, *_FIGURES)}
        row["spacing_row"], row["spacing_column"] = one.spacing or (None, None)
        for name, label in one.labels.items():
            values = {key: getattr(label, key) for key in _MARKED} | {"touches": " ".join(label.touches)}
            row |= {f"{key}_{name}" if several else key: value for key, value in values.items()}
        rows.append(row | {groups[name]: value for name, value in one.groups.items()})
    for bad in audit.set_aside:
        rows.append({"image_id": bad.image_id, "place": bad.uri, "reason": bad.reason, "detail": bad.detail})
    place.write_csv(rows, [*own[:-2], *groups.values(), *own[-2:]])
