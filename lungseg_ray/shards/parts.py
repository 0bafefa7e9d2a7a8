"""Parts of the training images, by patient: models that are trained without one of them judge its masks."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from lungseg_ray.shards.format import read_contents
from lungseg_ray.shards.index import Shard, ShardIndex
from lungseg_ray.storage import Location

_THREADS = 16
Row = tuple[Shard, int]


def part_of(patient_id: str, parts: int) -> int:
    """Returns the part that a patient belongs to, from 0; the same in every corpus.

    Args:
        patient_id: The patient.
        parts: The number of parts.
    """
    return int(hashlib.sha256(patient_id.encode()).hexdigest()[:16], 16) % parts


def split_off(root: Location, index: ShardIndex, part: str) -> tuple[ShardIndex, list[Row]]:
    """Takes the training images of a part of the patients out of an index.

    Args:
        root: The folder of the shards.
        index: Their index.
        part: The part, such as `0/4`: the first of four.

    Returns:
        The index in which these images are not used, and their rows. The shares of labels and the intensities of the
        split stay those of all images.

    Raises:
        DamagedShardError: If a shard is missing or damaged.
        OSError: If a shard cannot be read; a `StorageError` for a bucket.
    """
    number, parts = map(int, part.split("/"))
    training = index.of("train")
    # Sequential requests to a bucket would take a tenth of a second for each shard.
    with ThreadPoolExecutor(_THREADS) as pool:
        patients = list(pool.map(lambda shard: _patients(root, shard), training))
    taken: list[Row] = []
    left: set[str] = set()
    shards = {shard.file: shard for shard in index.shards}
    for shard, of_rows in zip(training, patients, strict=True):
        out = [row for row in shard.usable if part_of(of_rows[row], parts) == number]
        taken += [(shard, row) for row in out]
        left |= {of_rows[row] for row in shard.usable} - {of_rows[row] for row in out}
        shards[shard.file] = shard.model_copy(update={"skip": (*shard.skip, *out)})
    figures = index.splits["train"]
    changed = figures.model_copy(update={"images": figures.images - len(taken), "patients": len(left)})
    splits = {**index.splits, "train": changed}
    return index.model_copy(update={"shards": list(shards.values()), "splits": splits}), taken


def _patients(root: Location, shard: Shard) -> list[str]:
    return [str(row["patient_id"]) for row in read_contents(root / shard.file).rows]
