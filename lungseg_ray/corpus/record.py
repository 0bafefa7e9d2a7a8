"""What the rest of the system knows of one image: where it lies, whose it is, and on which side of the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

REASONS = {
    "unreadable": "the file cannot be decoded",
    "empty_file": "the file has no bytes",
    "no_mask": "the image has no mask",
    "no_image": "the mask, or the row of the index, has no image",
    "ambiguous": "several files share one name",
    "size_mismatch": "image and mask differ in size",
    "unknown_label": "the mask holds a value that the configuration does not map",
    "coloured_mask": "the mask has colours in place of label values",
    "empty_mask": "the mask marks nothing",
    "duplicate": "another image of the corpus has the same bytes",
}


@dataclass(frozen=True)
class Record:
    """One image of a corpus, before it is read.

    Attributes:
        image_id: unique in the corpus; the file's stem (layout `pairs`) or its path.
        image_uri: where the image lies.
        mask_uri: where its mask lies; None if it has none.
        patient_id: whose image it is; the image's own id where the corpus does not say.
        split: the side that the corpus prescribes; None where the hash of the patient decides.
        groups: further columns of the corpus, by name (`finding`, `sex`); evaluation reports them apart.
        size: bytes of image and mask files together, as listed; part of the corpus's identity.
        modified_ns: the later of both files' times of change, nanoseconds; part of the corpus's identity.
    """

    image_id: str
    image_uri: str
    mask_uri: str | None
    patient_id: str
    split: Split | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class SetAside:
    """A file that is not used, and why.

    Attributes:
        image_id: as in `Record`; of a mask without an image, the mask's stem.
        uri: the file at fault.
        reason: one of `REASONS`.
        detail: what was expected and found.
    """

    image_id: str
    uri: str
    reason: str
    detail: str
