"""What the rest of the system knows of one image: where it lies, whose it is, and on which side of the split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

STUDY_KEY = "study_key"
"""The group that says which study of DICOM an image is of; it is no subgroup to report apart."""

REASONS = {
    "unreadable": "the file cannot be read or decoded",
    "empty_file": "the file has no bytes",
    "unsupported": "the file is whole, but of a kind that is not read",
    "multi_frame": "the file holds several images",
    "no_pixels": "the DICOM file holds no image",
    "burned_in": "the DICOM file says that its pixels show whose it is",
    "rotated": "the file asks viewers to turn it, and its mask may be drawn on either way up",
    "too_large": "the file has more bytes or pixels than are read",
    "too_small": "the image has fewer pixels than a network can see",
    "out_of_range": "the pixels are brighter than white, or darker than black",
    "not_finite": "the pixels hold NaN or infinity",
    "bad_name": "the file's name is not UTF-8",
    "bad_path": "the manifest names a place that is not allowed or not understood",
    "no_mask": "the image has no mask",
    "no_image": "the mask, or the row of the index, has no image",
    "ambiguous": "several files share one name",
    "size_mismatch": "image and mask differ in size",
    "unknown_label": "the mask holds a value that the configuration does not map",
    "coloured_mask": "the mask has colours in place of label values",
    "empty_mask": "the mask marks nothing",
    "full_mask": "the mask marks every pixel alike",
    "duplicate": "another image of the corpus has the same bytes",
}


@dataclass(frozen=True)
class Record:
    """One image of a corpus, before it is read.

    Attributes:
        image_id: unique in the corpus; the file's stem (layout `pairs`) or its path.
        image_uri: where the image lies.
        mask_uris: the files that make its mask together (left and right lung); none if it is unlabelled.
        patient_id: whose image it is; the image's own id where the corpus does not say.
        split: the side that the corpus prescribes; None where the hash of the patient decides.
        groups: further columns of the corpus, by name (`finding`, `sex`); evaluation reports them apart.
        size: bytes of image and mask files together, as listed; part of the corpus's identity.
        modified_ns: the latest of all files' times of change, nanoseconds; part of the corpus's identity.
        mask_scale: rows of the image for each row of its mask.
        private: whether the file's path may say whose image it is, so that only `image_id` is written anywhere.
    """

    image_id: str
    image_uri: str
    mask_uris: tuple[str, ...]
    patient_id: str
    split: Split | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    modified_ns: int = 0
    mask_scale: float = 1.0
    private: bool = False

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that was written as JSON by way of `asdict`."""
        fields = json.loads(text)
        return cls(**{**fields, "mask_uris": tuple(fields["mask_uris"])})

    @property
    def shown(self) -> str:
        """What may be written of where the image lies."""
        return self.image_id if self.private else self.image_uri


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
