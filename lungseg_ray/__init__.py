"""Distributed training of medical image segmentation on Ray.

The names in `__all__` are the public surface; they are imported when they are first used. Everything else may change.

    model = lungseg_ray.open_model("runs/mine")
    labels = model.predict(image)
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungseg_ray.api import open_model, open_shards, read_shard
    from lungseg_ray.config import Settings
    from lungseg_ray.errors import UserError
    from lungseg_ray.inference.predictor import Predictor
    from lungseg_ray.shards.format import ShardRow
    from lungseg_ray.shards.index import ShardIndex

# albumentations asks the network for a newer release when it is imported; an air-gapped node would wait for it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Ray Data reads this when it is imported. A run prints a line for each epoch; Ray's own messages would bury it.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "Settings",
    "ShardIndex",
    "ShardRow",
    "UserError",
    "__version__",
    "open_model",
    "open_shards",
    "read_shard",
]

_HOMES = {
    "Predictor": "lungseg_ray.inference.predictor",
    "Settings": "lungseg_ray.config",
    "ShardIndex": "lungseg_ray.shards.index",
    "ShardRow": "lungseg_ray.shards.format",
    "UserError": "lungseg_ray.errors",
    "open_model": "lungseg_ray.api",
    "open_shards": "lungseg_ray.api",
    "read_shard": "lungseg_ray.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
