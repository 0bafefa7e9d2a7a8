from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lungseg_ray.config import Settings
from lungseg_ray.shards.build import shard
from lungseg_ray.shards.describe import Outcome
from tests.conftest import write_pairs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 24 patients, 64 x 64 px."""
    return write_pairs(tmp_path_factory.mktemp("corpus") / "pairs", 48)


@pytest.fixture(scope="session")
def sharded(corpus: Path, cluster: None) -> Outcome:
    """Shards of `corpus`, 7 images to a file."""
    return shard(settings_for(corpus, corpus.parent / "shards"))


def settings_for(images: Path, root: Path, **sections: dict[str, Any]) -> Settings:
    """Settings of a job small enough for a test."""
    tree: dict[str, dict[str, Any]] = {
        "corpus": {"root": str(images), "split": {"val": 0.25}},
        "shards": {"root": str(root), "rows": 7},
        "feed": {"size": 64, "batch": 4, "window": 2},
        "model": {"architecture": "Unet", "encoder": "resnet18"},
        "train": {"epochs": 2, "precision": "fp32", "threads": 1},
        "evaluate": {"resamples": 50, "robustness": 2},
    }
    return Settings.model_validate({key: {**tree.get(key, {}), **sections.get(key, {})} for key in {*tree, *sections}})
