"""The layout `jsrt`: the database of the Japanese Society of Radiological Technology with the masks of SCR.

The set has 247 raw images, each of a different patient. The masks have half the size of the images. They are in two
folds, of odd and even numbers, which were intended for training on one fold and testing on the other, in both
directions (docs/corpora.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Layout, Listing, complete, join, make_record
from lungseg_ray.corpus.layouts.readings import decade, read_texts
from lungseg_ray.corpus.layouts.tree import Entry, FileTree, anywhere
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError

EXPECTS = "JPCLN*.IMG and JPCNN*.IMG, and of SCR fold1/ and fold2/ with masks/left lung/ and masks/right lung/"
MASK_SCALE = 2.0
"""The rows of an image for each row of its mask: images have 2048 rows and columns, masks have 1024."""
_SIDES = ("left lung", "right lung")
_ID = r"(?P<id>JPC[LN]N\d{3})"
_IMAGE = anywhere(rf"{_ID}\.(IMG|img)")
_OURS = anywhere(r"([^/]*\.IMG|(left|right)[ _]lung/[^/]*)", re.IGNORECASE)
_CLINICAL = anywhere(r"(?P<id>C[LN]NDAT_EN)\.TXT", re.IGNORECASE)
# A line contains the name, subtlety, size, AGE, SEX and the position of the nodule, or the name, AGE, SEX and
# "non-nodule". A value that is not known is "?".
_PATIENT = re.compile(r"(JPC[LN]N\d{3})\.IMG(?:(?!JPC)[^\r\n])*?[ \t](\d+|\?)[ \t]+(male|female)\b", re.IGNORECASE)


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout as a clause; empty if there is none."""
    images = tree.match(_IMAGE)
    return f"found {min(images)}.IMG" if images else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists the set.

    An image without masks is unlabelled. An image with the mask of only one lung is set aside.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus. A `mask_scale` of "auto" is `MASK_SCALE`.

    Returns:
        The listing, with the groups `sex`, `age` and `nodule`.

    Raises:
        UserError: If there is no image of the set.
        StorageError: If a bucket does not answer while the clinical data are read.
    """
    images, masks = tree.match(_IMAGE), {side: tree.match(_mask(side)) for side in _SIDES}
    if not images:
        raise UserError(
            f"{tree.name}: the layout jsrt expects {EXPECTS}; found {tree.describe()}. Correct corpus.root."
        )
    patients = _patients("\n".join(read_texts(tree.match(_CLINICAL)).values()))

    def make(image_id: str, image: Entry, files: Sequence[Entry]) -> Record:
        groups = {**patients.get(image_id, {}), "nodule": "yes" if image_id.startswith("JPCLN") else "no"}
        record = make_record(image_id, image, files, settings, groups, image_id)
        return record if settings.mask_scale != "auto" else replace(record, mask_scales=(MASK_SCALE,))

    listing = join("jsrt", {"All247images": images}, masks, make, may_lack=True)
    known = sum(len(found) for part in (images, *masks.values()) for found in part.values())
    return complete(listing, set_aside=tree.unusable(), ignored=tree.count(_OURS) - known)


def _mask(side: str) -> re.Pattern[str]:
    return anywhere(rf"{side.replace(' ', '[ _]')}/{_ID}\.gif")


def _patients(text: str) -> dict[str, dict[str, str]]:
    return {
        image_id: {"sex": sex.lower(), **(decade(int(age)) if age.isdigit() else {})}
        for image_id, age, sex in _PATIENT.findall(text)
    }


JSRT = Layout("jsrt", EXPECTS, recognise, read)
