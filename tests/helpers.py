"""Small builders that several test modules share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lungseg_ray.config import CorpusSettings, Settings
from lungseg_ray.corpus.record import SPLITS, MaskSource, Record, Sample, Split
from lungseg_ray.run import checkpoint
from lungseg_ray.shards.format import read_contents, write_file
from lungseg_ray.shards.index import SCHEMA_VERSION, Shard, ShardIndex, SplitFigures, write_index
from lungseg_ray.storage import Location

ROOT = Path(__file__).resolve().parent.parent
"""The root of the repository."""
DATA = ROOT / "../shared/data"
"""Corpora of real images; tests that need one are skipped where it is missing."""


def make_settings(*, corpora: list[dict[str, Any]] | None = None, **sections: Mapping[str, Any]) -> Settings:
    """Settings of a tiny run; `sections` override single leaves."""
    tiny: dict[str, dict[str, Any]] = {
        "model": {"architecture": "Linknet", "encoder": "timm-regnety_002"},
        "feed": {"size": 32, "batch": 4, "preset": "valid"},
        "train": {"epochs": 4, "precision": "fp32", "threads": 1, "average": 0.0},
        "evaluate": {"robustness": 0, "confidence": False},
        "optim": {"name": "radam", "lr": 5e-3, "encoder_lr": 5e-3, "weight_decay": 3e-4, "encoder_weight_decay": 3e-5}
        | {"lookahead_k": 0, "schedule": "constant", "clip": 0.0},
    }
    merged = {name: {**tiny.get(name, {}), **sections.get(name, {})} for name in {**tiny, **sections}}
    return Settings.model_validate({**merged, "corpora": corpora or []})


def make_sample(name: str, *, height: int = 40, width: int = 48, channels: int = 1) -> Sample:
    """A random image with a box for a mask; both follow from the name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    rng = np.random.default_rng(int(digest[:8], 16))
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, height // 2 + 1), rng.integers(0, width // 2 + 1)
    mask[top : top + height // 3, left : left + width // 3] = 1
    return Sample(image, mask, height, width, 8, None, digest, digest[::-1])


def shard_of(place: Location, *, split: Split = "train", skip: tuple[int, ...] = ()) -> Shard:
    """The entry of a written shard in an index."""
    contents = read_contents(place)
    return Shard(file=place.name, split=split, rows=len(contents.rows), footer=contents.footer, skip=skip)


def write_shards(
    root: Location, *, rows: Mapping[str, list[int]], skip: Mapping[str, tuple[int, ...]], salt: str = ""
) -> ShardIndex:
    """Writes shards and their index.

    Args:
        root: the folder.
        rows: for each split, the number of rows of each of its files.
        skip: by file (`train-0`), numbers of rows that do not count.
        salt: what the ids of the images begin with.
    """
    shards, splits = [], {}
    for split in SPLITS:
        for number, count in enumerate(rows.get(split, [])):
            stem = f"{split}-{number}"
            names = [f"{salt}{stem}-{row}" for row in range(count)]
            content = [
                (Record(name, name, (MaskSource(name),), f"patient of {name}"), make_sample(name)) for name in names
            ]
            write_file(root / f"{stem}.parquet", content)
            shards.append(shard_of(root / f"{stem}.parquet", split=split, skip=skip.get(stem, ())))
        images = sum(len(shard.usable) for shard in shards if shard.split == split)
        splits[split] = SplitFigures(
            images=images, patients=images, label_shares={0: 0.9, 1: 0.1}, intensity_mean=0.5, intensity_std=0.3
        )
    index = ShardIndex(
        schema_version=SCHEMA_VERSION,
        fingerprint=hashlib.sha256(str((salt, rows, skip)).encode()).hexdigest(),
        source="of the test",
        layout="pairs",
        corpus=CorpusSettings(root="somewhere"),
        longer_side=1024,
        splits=splits,
        shards=shards,
        set_aside={},
    )
    write_index(root, index)
    return index


def find_damage(place: Location) -> str | None:
    """Reads a checkpoint completely, and returns what is wrong with it, in words; None if it can be used."""
    try:
        checkpoint.read_checkpoint(place)
    except checkpoint.DamagedCheckpointError as error:
        return str(error)
    return None


def mapped(values: Mapping[Any, int | str], **settings: Any) -> CorpusSettings:
    """Settings of a corpus whose masks have these values; the number of classes is that of the labels."""
    labels = max(label for label in values.values() if isinstance(label, int))
    names = [f"label {label}" for label in range(1, max(labels, 1) + 1)]
    classes = labels + 1 if labels > 1 else 1
    return CorpusSettings.model_validate({"classes": classes, "class_names": names, "mask_values": values, **settings})


def folder_of(place: Location) -> Location:
    """The folder in which a file lies."""
    return Location(place.uri.rpartition("/")[0])
