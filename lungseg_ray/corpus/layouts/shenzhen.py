"""The layout `shenzhen`: the Shenzhen Hospital X-ray Set, with the masks that others drew for most of its images.

The set has 662 images, each of a different patient, of which 566 have masks (docs/corpora.md). In a well-known edition,
this set and that of Montgomery County share one CXR_png/ and one masks/. The images of both are then read.
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

EXPECTS = "CXR_png/CHNCXR_*.png, mask/ or masks/ with CHNCXR_*_mask.png, and ClinicalReadings/ if it is there"
_ID = r"(?P<id>(CHN|MCU)CXR_\d+_[01])"
_SHENZHEN = re.compile(r"(?P<id>(.*/)?CXR_png)/CHNCXR_\d+_[01]\.png")
# The masks in Annotations-2/masks/ mark findings, not lungs.
_MASK = re.compile(rf"(?!(.*/)?Annotations)(.*/)?masks?/{_ID}(_mask)?\.png", re.DOTALL)
_READING = anywhere(rf"ClinicalReadings/{_ID}\.txt")


def recognise(tree: FileTree) -> str:
    """Returns the evidence for this layout as a clause; empty if there is none."""
    return "found CXR_png/CHNCXR_*.png" if tree.match(_SHENZHEN) else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists the set. Images for which nobody drew a mask are unlabelled.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus.

    Returns:
        The listing, with the groups `sex`, `age` and `finding`.

    Raises:
        UserError: If there is no image of the set.
        StorageError: If a bucket does not answer while the clinical readings are read.
    """
    folders = "|".join(re.escape(folder) for folder in tree.match(_SHENZHEN))
    if not folders:
        raise UserError(
            f"{tree.name}: the layout shenzhen expects {EXPECTS}; found {tree.describe()}. Correct corpus.root."
        )
    # Images of the Montgomery County set are read only from folders that also hold images of this set.
    images = tree.match(re.compile(rf"({folders})/{_ID}\.png"))
    others = tree.count(re.compile(rf"({folders})/.*", re.DOTALL)) - sum(len(found) for found in images.values())
    texts = read_texts(tree.match(_READING))

    def make(image_id: str, image: Entry, files: Sequence[Entry]) -> Record:
        return make_record(image_id, image, files, settings, reading_groups(image_id, texts), image_id)

    listing = join("shenzhen", {"CXR_png": images}, {"mask": tree.match(_MASK)}, make, may_lack=True)
    return complete(listing, set_aside=tree.unusable(), ignored=others)


SHENZHEN = Layout("shenzhen", EXPECTS, recognise, read)
