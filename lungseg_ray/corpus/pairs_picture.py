"""A picture of a few images with the outlines of their masks, to see at a glance whether they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import Record, Sample
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import figure_png, fit_labels_to, fit_to, overlay
from lungseg_ray.storage import PATIENCE_SECONDS, retry
from lungseg_ray.text import shown

PAIRS_PICTURE = "pairs.png"
"""The picture has this file name, beside the shards."""
_SIDE = 384
_COLUMNS = 3
_LONGEST_TITLE = 36


def draw_pairs(records: Sequence[Record], corpus: CorpusSettings, *, most: int) -> bytes | None:
    """Draws images, spread over the corpus, with the outlines of their labels.

    Args:
        records: The images with masks, in their order.
        corpus: The settings by which they are read.
        most: The largest number of images.

    Returns:
        A PNG file; None if no image can be read.

    Raises:
        OSError: If a disk, or a bucket (`StorageError`), does not answer.
    """
    samples: list[tuple[Record, Sample]] = []
    for record in records[:: max(-(-len(records) // most), 1)]:
        try:
            samples.append((record, retry(partial(_read, record, corpus), seconds=PATIENCE_SECONDS)))
        except BadFileError:
            continue
        if len(samples) == most:
            break
    if not samples:
        return None
    rows = -(-len(samples) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 3.4 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (record, sample) in zip(axes, samples, strict=False):
        mask = fit_labels_to(sample.mask, _SIDE)
        axis.imshow(overlay(fit_to(sample.image, _SIDE), mask * (mask != 255)))
        # A name is never read as a formula.
        axis.set_title(shown(record.image_id, _LONGEST_TITLE), fontsize=8)
    return figure_png(figure)


def _read(record: Record, corpus: CorpusSettings) -> Sample:
    return read_sample(record, corpus, longer_side=2 * _SIDE)
