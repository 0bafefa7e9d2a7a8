"""The public surface: it changes only where this test does."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lungseg_ray
from lungseg_ray.errors import UserError
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import locate
from tests.helpers import write_shards
from tests.inference.helpers import save_small_model

SURFACE = {
    "Predictor": "(members: 'Sequence[tuple[nn.Module, Sidecar]]', *, flips: 'Flips | None' = None, "
    "device: 'torch.device | str' = 'cpu') -> 'None'",
    "open_model": "(run: 'str', *, device: 'str' = 'cpu') -> 'Predictor'",
    "open_shards": "(root: 'str') -> 'ShardIndex'",
    "read_shard": "(root: 'str', file: 'str') -> 'list[ShardRow]'",
}
METHODS = {"Predictor": ["combine", "features", "inputs", "labels", "maps", "predict"], "ShardIndex": ["count", "of"]}
"""Public methods of our own, beside those of pydantic."""


def test_names() -> None:
    assert sorted([*SURFACE, "Settings", "ShardIndex", "ShardRow", "UserError", "__version__"]) == lungseg_ray.__all__
    assert set(lungseg_ray.__all__) <= set(dir(lungseg_ray))
    for name in lungseg_ray.__all__:
        assert inspect.getdoc(getattr(lungseg_ray, name)), name


@pytest.mark.parametrize("name", SURFACE)
def test_signatures(name: str) -> None:
    assert str(inspect.signature(getattr(lungseg_ray, name))) == SURFACE[name]


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    mine = [one for one in getattr(lungseg_ray, name).__mro__ if one.__module__.startswith("lungseg_ray")]
    own = {key for one in mine for key, value in vars(one).items() if inspect.isfunction(value) and key[0] != "_"}
    assert sorted(own) == METHODS[name]


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lungseg_ray.nothing  # noqa: B018


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, lungseg_ray; print(sorted({'torch', 'ray', 'cv2', 'pyarrow'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_model_predicts_an_array(tmp_path: Path) -> None:
    save_small_model(locate(str(tmp_path)) / BEST, longer_side=64)
    model = lungseg_ray.open_model(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (150, 100), np.uint8)
    labels = model.predict(image)
    # The longer side is reduced to 64 for the model, and the labels come at the size of the image.
    assert labels.shape == (150, 100)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1}
    assert np.array_equal(model.predict(image[:, :, None]), labels)
    with pytest.raises(UserError, match=r"Expected an image \(H, W, 1\) of uint8, found \(150, 100\) of float64"):
        model.predict(image / 255)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"found \(150, 100, 3\) of uint8"):
        model.predict(np.repeat(image[:, :, None], 3, axis=2))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trained model here"):
        lungseg_ray.open_model(str(tmp_path))


def test_shards_are_read(tmp_path: Path) -> None:
    write_shards(locate(str(tmp_path)), rows={"train": [3, 2], "val": [1]}, skip={"train-0": (1,)})
    index = lungseg_ray.open_shards(str(tmp_path))
    assert [shard.file for shard in index.of("train")] == ["train-0.parquet", "train-1.parquet"]
    rows = lungseg_ray.read_shard(str(tmp_path), "train-0.parquet")
    assert [row.image_id for row in rows] == ["train-0-0", "train-0-2"]
    assert rows[0].sample.image.shape == (40, 48, 1)
    with pytest.raises(KeyError):
        lungseg_ray.read_shard(str(tmp_path), "other.parquet")
