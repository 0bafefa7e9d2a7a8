"""One image of a corpus before and after it is read, and the reasons for which a file is set aside.

All later stages of the system get images as these records, whatever the layout of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lungseg_ray.corpus.picture import Spacing
from lungseg_ray.imaging import Pixels

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "tr", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "vld", "dev", "development"), "val"),
    **dict.fromkeys(("eval", "evaluate", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "ts", "tst", "holdout", "heldout"), "test"),
}
"""The words for a split, in the names of folders and in tables."""

STUDY_KEY = "study_key"
"""The name of the group that contains the key of the DICOM study of an image. It is not reported as a subgroup."""

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
    "orientation": "image and mask are slices in different planes",
    "unknown_label": "the mask holds a value that the configuration does not map",
    "coloured_mask": "the mask has colours in place of label values",
    "empty_mask": "the mask marks nothing",
    "full_mask": "the mask marks every pixel alike",
    "duplicate": "another image of the corpus has the same bytes",
}
"""The reasons for which a file is set aside, each with an explanation for the user."""


@dataclass(frozen=True, slots=True)
class MaskSource:
    """One of the sources of a mask: a file, or a part of a file that describes the masks of many images.

    Attributes:
        uri: The URI of the file.
        entry: The part, as `corpus.read` reads it: "drawing:" or "runs:" and JSON, or "segmentation:" and the UID of
            the image; empty for the whole file.
        structure: Words for what the file marks, such as "left lung"; empty if nothing says so.
    """

    uri: str
    entry: str = ""
    structure: str = ""


ANY_SCALE = (0.0,)
"""The `mask_scales` of masks of any size with the proportions of their images."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a corpus, before it is read.

    Attributes:
        image_id: The id of the image, unique in the corpus: the stem of the file, its path, or a key of its path,
            depending on the layout.
        image_uri: The URI of the image file.
        masks: The sources that form the mask together (left and right lung); empty if the image is unlabelled.
        patient_id: The id of the patient. In a listing, that of the image if the corpus does not specify the patient;
            before that, empty.
        split: The split that the corpus prescribes; None if the hash of the patient determines it.
        groups: Further columns of the corpus, by name (`finding`, `sex`). Evaluation reports them as subgroups.
        state: A hash of the sizes and times of change of the image and mask files. It is part of the identity of the
            corpus.
        mask_scales: The rows of the image for each row of its mask, of which one must fit; empty for a mask that is
            stretched to its image, and `ANY_SCALE` for one that must have its proportions.
        private: Whether the path of the file may identify the patient, so that only `image_id` may be written anywhere.
    """

    image_id: str
    image_uri: str
    masks: tuple[MaskSource, ...]
    patient_id: str
    split: Split | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    mask_scales: tuple[float, ...] = (1.0,)
    private: bool = False

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Builds a record from the text that `to_json` returns."""
        fields = json.loads(text)
        masks = tuple(MaskSource(**one) for one in fields["masks"])
        return cls(**{**fields, "masks": masks, "mask_scales": tuple(fields["mask_scales"])})

    def to_json(self, **options: Any) -> str:
        """Returns the JSON text of its `asdict`; `options` are those of `json.dumps`."""
        # `asdict` copies each value, which takes ten times as long.
        return json.dumps(_shallow(self) | {"masks": [_shallow(source) for source in self.masks]}, **options)

    @property
    def mask_uris(self) -> tuple[str, ...]:
        """The URIs of the files that form the mask together."""
        return tuple(source.uri for source in self.masks)

    @property
    def shown(self) -> str:
        """The text that may be written for the location of the image: its URI, or its id if the record is private."""
        return self.image_id if self.private else self.image_uri


@dataclass(frozen=True)
class SetAside:
    """A file that is not used, with the reason.

    Attributes:
        image_id: The id as in `Record`; for a mask without an image, the stem of the mask.
        uri: The URI of the file that causes the problem.
        reason: One of `REASONS`.
        detail: What was expected and what was found, for a message.
    """

    image_id: str
    uri: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Sample:
    """A decoded image with its mask.

    Attributes:
        image: The image as (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        mask: The label map as (H, W) uint8; pixels with `IGNORE_LABEL` are left out.
        source_height: Rows of the image in the file, before it was reduced.
        source_width: Columns of the image in the file, before it was reduced.
        source_bits: Bits per value in the file; a sample has 8.
        spacing: Pixel spacing in the file, millimetres (row, column); None if the file does not specify it.
        image_sha256: The SHA-256 of the image file (for a phantom, of its pixels), hexadecimal.
        mask_sha256: The SHA-256 of all mask files in their order (for a phantom, of the mask's pixels), hexadecimal.
    """

    image: Pixels
    mask: Pixels
    source_height: int
    source_width: int
    source_bits: int
    spacing: Spacing
    image_sha256: str
    mask_sha256: str


def _shallow(one: Record | MaskSource) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}
