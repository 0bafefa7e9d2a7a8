"""Where X-rays and masks come from: which belong together, whose they are, and what their pixels hold."""

from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.read import Sample, read_image, read_sample
from lungseg_ray.corpus.record import REASONS, SPLITS, STUDY_KEY, Record, SetAside, Split
from lungseg_ray.corpus.split import assign_splits

__all__ = [
    "REASONS",
    "SPLITS",
    "STUDY_KEY",
    "Listing",
    "Record",
    "Sample",
    "SetAside",
    "Split",
    "assign_splits",
    "list_corpus",
    "read_image",
    "read_sample",
]
