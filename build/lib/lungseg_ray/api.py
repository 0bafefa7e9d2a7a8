"""The functions of the public surface: a trained model, and the rows of shards, for notebooks and other programs."""

from __future__ import annotations

from lungseg_ray.inference.predictor import Predictor, load_predictor
from lungseg_ray.run.folder import BEST
from lungseg_ray.shards.format import ShardIndex, ShardRow, read_index, read_rows
from lungseg_ray.storage import locate


def open_model(run: str, *, device: str = "cpu") -> Predictor:
    """Opens the best model of a finished run.

    Args:
        run: The folder or s3:// prefix of the run.
        device: The device to compute on, such as "cpu" or "cuda".

    Raises:
        UserError: If there is no trained model.
    """
    return load_predictor(locate(run) / BEST, device=device)


def open_shards(root: str) -> ShardIndex:
    """Reads what a folder of shards contains: its files, its settings, and figures for each split.

    Args:
        root: The folder or s3:// prefix of the shards.

    Raises:
        UserError: If there are no shards, or if another version of the software wrote them.
    """
    return read_index(locate(root))


def read_shard(root: str, file: str) -> list[ShardRow]:
    """Reads the images and masks of one shard.

    Args:
        root: The folder or s3:// prefix of the shards.
        file: The name of the file, as `ShardIndex.shards` has it.

    Returns:
        The rows that count, in the order of the file. `row.sample.image` is (H, W, C) uint8, `row.sample.mask` (H, W)
        uint8 labels.

    Raises:
        KeyError: If the index has no such file.
        UserError: If there are no shards.
    """
    place = locate(root)
    shards = {shard.file: shard for shard in read_index(place).shards}
    return read_rows(place / file, shards[file].usable)
