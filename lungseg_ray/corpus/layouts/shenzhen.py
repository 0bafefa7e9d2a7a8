"""The layout `shenzhen`: the Shenzhen Hospital X-ray Set with the masks that others drew for most of its images.

662 images, each of another patient, of which 566 have masks (docs/corpora.md). Where both sets lie in one CXR_png/ and
one masks/, as in a well-known edition, the images of Montgomery County are read along.
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
# Annotations-2/masks/ marks findings, not lungs.
_MASK = re.compile(rf"(?!(.*/)?Annotations)(.*/)?masks?/{_ID}(_mask)?\.png", re.DOTALL)
_READING = anywhere(rf"ClinicalReadings/{_ID}\.txt")


def recognise(tree: FileTree) -> str:
    """What speaks for this layout."""
    return "found CXR_png/CHNCXR_*.png" if tree.match(_SHENZHEN) else ""


def read(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists the set; images for which nobody drew a mask are unlabelled.

    Raises:
        UserError: if there is no image of the set.
    """
    folders = "|".join(re.escape(folder) for folder in tree.match(_SHENZHEN))
    if not folders:
        raise UserError(
            f"{tree.root}: the layout shenzhen expects {EXPECTS}; found {tree.describe()}. Correct corpus.root."
        )
    # Of the set of Montgomery County, those alone that lie among them.
    images = tree.match(re.compile(rf"({folders})/{_ID}\.png"))
    others = tree.count(re.compile(rf"({folders})/.*", re.DOTALL)) - sum(len(found) for found in images.values())
    texts = read_texts(tree.match(_READING))

    def make(image_id: str, image: Entry, files: Sequence[Entry]) -> Record:
        return make_record(image_id, image, files, settings, reading_groups(image_id, texts))

    listing = join("shenzhen", {"CXR_png": images}, {"mask": tree.match(_MASK)}, make, may_lack=True)
    return complete(listing, set_aside=tree.unusable(), ignored=others)


SHENZHEN = Layout("shenzhen", EXPECTS, recognise, read)
