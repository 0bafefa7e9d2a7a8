"""The layout `montgomery`: the Montgomery County X-ray Set, as the National Library of Medicine publishes it.

The set has 138 images, each of a different patient, with one mask for each lung (docs/corpora.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Layout, Listing, complete, join, make_record
from lungseg_ray.corpus.layouts.readings import read_texts, reading_groups
from lungseg_ray.corpus.layouts.tree import Entry, FileTree, anywhere
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError

EXPECTS = "CXR_png/MCUCXR_*.png, ManualMask/leftMask/ and rightMask/, and ClinicalReadings/ if it is there"
_SIDES = ("leftMask", "rightMask")
_ID = r"(?P<id>MCUCXR_\d+_[01])"
_IMAGE = anywhere(rf"CXR_png/{_ID}\.png")
_READING = anywhere(rf"ClinicalReadings/{_ID}\.txt")
_OURS = anywhere(r"((leftMask|rightMask)/.*|CXR_png/(?!CHNCXR_).*)")


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout as a clause; empty if there is none."""
    if not tree.match(_IMAGE) or not any(tree.match(_mask(side)) for side in _SIDES):
        return ""
    return "found CXR_png/MCUCXR_*.png and ManualMask/leftMask/ or rightMask/"


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists the set. An image that lacks the mask of a lung is set aside.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus.

    Returns:
        The listing, with the groups `sex`, `age` and `finding`.

    Raises:
        UserError: If there is no image of the set.
        StorageError: If a bucket does not answer while the clinical readings are read.
    """
    images, masks = tree.match(_IMAGE), {side: tree.match(_mask(side)) for side in _SIDES}
    if not images:
        raise UserError(
            f"{tree.name}: the layout montgomery expects {EXPECTS}; found {tree.describe()}. Correct corpus.root."
        )
    texts = read_texts(tree.match(_READING))

    def make(image_id: str, image: Entry, files: Sequence[Entry]) -> Record:
        return make_record(image_id, image, files, settings, reading_groups(image_id, texts), image_id)

    known = sum(len(found) for part in (images, *masks.values()) for found in part.values())
    listing = join("montgomery", {"CXR_png": images}, masks, make)
    return complete(listing, set_aside=tree.unusable(), ignored=tree.count(_OURS) - known)


def _mask(side: str) -> re.Pattern[str]:
    return anywhere(rf"{side}/{_ID}\.png")


MONTGOMERY = Layout("montgomery", EXPECTS, recognise, read)
