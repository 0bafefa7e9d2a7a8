"""What an audit found, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lungseg_ray.audit.duplicates import DuplicatePair
from lungseg_ray.audit.facts import ImageFacts
from lungseg_ray.audit.outliers import Outlier
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import Record, SetAside
from lungseg_ray.storage import Location

PAGE = "audit.html"
TABLE = "audit.csv"

_PLAIN = ("image_id", "patient_id", "split", "place", "format", "height", "width", "bits")
_FIGURES = ("mean", "std", "low", "high", "brightest", "black", "white", "phash", "image_sha256", "mask_sha256")
_MARKED = ("share", "parts", "specks", "ratio", "touches", "left", "row", "column")


@dataclass(frozen=True)
class Audit:
    """What is known of a corpus.

    Attributes:
        corpus: how it is read.
        longer_side: to which larger images were reduced, pixels.
        layout: its name, and what it was recognised by.
        records: of all images that are listed, by `image_id`.
        images: those that can be read, with a mask or without, ordered by `image_id`.
        set_aside: files that cannot be used, ordered by `image_id`.
        ignored: files of a kind that is not read.
        torn: patients whom the corpus puts on several sides of the split, with these.
        undealt: why the others have no side; empty where they have.
        twins: images that stand in the corpus more than once.
        outliers: images unlike the rest, the farthest first.
    """

    corpus: CorpusSettings
    longer_side: int
    layout: str
    records: Mapping[str, Record]
    images: Sequence[ImageFacts]
    set_aside: Sequence[SetAside]
    ignored: int
    torn: Mapping[str, Sequence[str]]
    undealt: str
    twins: Sequence[DuplicatePair]
    outliers: Sequence[Outlier]

    @cached_property
    def labelled(self) -> list[ImageFacts]:
        """The images with a mask."""
        return [one for one in self.images if one.labels]

    @property
    def patients(self) -> int:
        """How many have an image that can be read."""
        return len({one.patient_id for one in self.images})

    @property
    def names(self) -> list[str]:
        """Of the labels from 1 on."""
        return self.corpus.class_names


def write_table(audit: Audit, place: Location) -> None:
    """Writes a table with a row for each image, and for each file set aside.

    Columns are named as in `Facts`, `Marked` and `SetAside`; with several labels, those of a label end in its name, and
    a column of the corpus whose name is taken starts with `group_`.

    Args:
        audit: what was found.
        place: the CSV file.
    """
    several = len(audit.names) > 1
    figures = [f"{key}_{name}" if several else key for name in audit.names for key in _MARKED]
    own = [*_PLAIN, "spacing_row", "spacing_column", *_FIGURES, *figures, "reason", "detail"]
    groups = {name: f"group_{name}" if name in own else name for one in audit.images for name in one.groups}
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
