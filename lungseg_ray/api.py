"""The public functions for notebooks and other programs: they open a trained model and read the rows of shards."""

from __future__ import annotations

from lungseg_ray.inference.predictor import Predictor, load_predictor
from lungseg_ray.run.folder import BEST
from lungseg_ray.shards.format import ShardRow, read_rows
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.storage import locate


def open_model(run: str, *, device: str = "cpu") -> Predictor:
    """Opens the best model of a finished run.

    Args:
        run: The folder or s3:// prefix of the run.
        device: The device to compute on, such as "cpu" or "cuda".

    Returns:
        The model with its preprocessing.

    Raises:
        UserError: If there is no trained model, or if its files are damaged.
    """
    return load_predictor(locate(run) / BEST, device=device)


def open_shards(root: str) -> ShardIndex:
    """Reads the index of a folder of shards: its files, its settings, and figures for each split.

    Args:
        root: The folder or s3:// prefix of the shards.

    Returns:
        The index.

    Raises:
        UserError: If there are no shards, if the index is damaged, or if another version of the software wrote it.
    """
    return read_index(locate(root))


def read_shard(root: str, file: str) -> list[ShardRow]:
    """Reads the images and masks of one shard.

    Args:
        root: The folder or s3:// prefix of the shards.
        file: The file name of the shard, one of those in `ShardIndex.shards`.

    Returns:
        The usable rows, in the order of the file. `row.sample.image` is (H, W, C) uint8, and `row.sample.mask` is
        (H, W) uint8 labels.

    Raises:
        KeyError: If the index does not contain the file.
        UserError: If there are no shards, if the index is damaged, or if another version of the software wrote it.
        DamagedShardError: If the shard is missing, damaged, or another one than the index describes.
        OSError: If the file cannot be read.
    """
    place = locate(root)
    shards = {shard.file: shard for shard in read_index(place).shards}
    return read_rows(place, shards[file], shards[file].usable)
