"""Lists the X-rays and masks of a corpus, pairs them, assigns each patient to a split and reads the pixels.

The rest of the code works with `Record` and `Sample`, and needs no knowledge of folder layouts or file formats.
"""

from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.read import Sample, read_image, read_sample
from lungseg_ray.corpus.record import REASONS, SPLITS, STUDY_KEY, MaskSource, Record, SetAside, Split
from lungseg_ray.corpus.split import assign_splits

__all__ = [
    "REASONS",
    "SPLITS",
    "STUDY_KEY",
    "Listing",
    "MaskSource",
    "Record",
    "Sample",
    "SetAside",
    "Split",
    "assign_splits",
    "list_corpus",
    "read_image",
    "read_sample",
]
