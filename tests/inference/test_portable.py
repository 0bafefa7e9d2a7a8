from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lungseg_ray.config import ExportJob
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.imaging import limited, resize_area
from lungseg_ray.inference import reference
from lungseg_ray.inference.portable import FILES, open_file
from lungseg_ray.inference.predictor import Predictor, Processing
from lungseg_ray.jobs import export as job
from lungseg_ray.jobs.cli import MISTAKE, main
from lungseg_ray.names import Format
from lungseg_ray.run.exported import SIDECAR, open_model
from lungseg_ray.storage import locate
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings
from tests.inference.helpers import make_sidecar, save_small_model

SIDES = {
    "class_names": ["right", "left"],
    "mirrored": [(1, 2)],
    "flips": "horizontal",
    "normalise": True,
    "clean_up": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with all that may happen around a network."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = build_model(make_settings(corpus={"classes": 3, "class_names": ["right", "left"]}))
    save_small_model(locate(str(folder)), model, classes=3, **SIDES)
    return folder


@pytest.mark.parametrize("format", FILES)
def test_a_file_does_what_the_predictor_does(model: Path, tmp_path: Path, format: Format) -> None:
    found = job.export(ExportJob(run=str(model), out=str(tmp_path), format=format))
    assert found.difference < 1e-5
    side = json.loads((tmp_path / SIDECAR).read_text())
    # The copied program needs nothing of this project.
    program = (tmp_path / job.REFERENCE).read_text().splitlines()
    imports = {line.split()[1] for line in program if line.startswith(("import", "from"))}
    assert imports == {"cv2", "numpy", "typing"}
    opened = open_file(tmp_path / FILES[format], format)
    predictor = Predictor([open_model(locate(str(model)))])
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (40 + number, 70, 1), np.uint8) for number in range(5)]
    (inputs,) = predictor.inputs(images)
    assert np.array_equal(np.stack([reference.before(image, side) for image in images]), inputs)
    maps = opened(inputs)
    (expected,) = predictor.maps([inputs])
    assert np.abs(maps - expected).max() < 1e-5
    # A pixel on the threshold may fall to either side; given the same map, all are equal.
    sized = predictor.combine([maps], [image.shape[:2] for image in images])
    for image, map_, probability in zip(images, maps, sized, strict=True):
        labels = reference.after(map_, image.shape[0], image.shape[1], side)
        assert np.array_equal(labels, predictor.labels(probability))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_reference_does_what_the_predictor_does(data: st.DataObject) -> None:
    high, wide = (data.draw(st.integers(1, 90)) for _ in range(2))
    classes = data.draw(st.sampled_from([1, 3]))
    side = make_sidecar(
        classes=classes,
        channels=data.draw(st.sampled_from([1, 3])),
        fit=data.draw(st.sampled_from(["stretch", "pad"])),
        longer_side=data.draw(st.integers(8, 100)),
        clean_up=data.draw(st.booleans()),
        threshold=0.4,
    )
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = generator.integers(0, 256, (high, wide, side.channels), np.uint8)
    processing, plain = Processing([side]), json.loads(side.model_dump_json())
    small = reference.before(image, plain)
    # A predictor gets images that are reduced already, as those of shards are.
    reduced = resize_area(image, *limited(high, wide, longer_side=side.longer_side))
    assert np.array_equal(processing.inputs([reduced.reshape(*reduced.shape[:2], -1)])[0][0], small)
    map_ = generator.random((side.size, side.size, classes), np.float32)
    (combined,) = processing.combine([map_[None]], [(high, wide)])
    assert np.array_equal(processing.labels(combined), reference.after(map_, high, wide, plain))


def test_a_file_that_computes_something_else_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is not looked at, so that none need be made.
    monkeypatch.setattr(job, "write_model", lambda *_, **__: None)
    monkeypatch.setattr(job, "open_file", lambda file, format: lambda images: np.zeros((*images.shape[:3], 3)))
    with pytest.raises(JobFailedError, match="computes something else, by up to"):
        job.export(ExportJob(run=str(model), out=str(tmp_path), format="torchscript"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_no_numbers_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "write_model", lambda *_, **__: None)
    monkeypatch.setattr(job, "open_file", lambda file, format: lambda images: np.full((*images.shape[:3], 3), np.nan))
    with pytest.raises(JobFailedError, match="computes something else"):
        job.export(ExportJob(run=str(model), out=str(tmp_path), format="torchscript"))


def test_a_folder_holds_the_files_of_one_model(model: Path, tmp_path: Path) -> None:
    given = {"run": str(model), "out": str(tmp_path / "out"), "format": "torchscript"}
    job.export(ExportJob.model_validate(given))
    job.export(ExportJob.model_validate(given))
    with pytest.raises(UserError, match="files of another model"):
        job.export(ExportJob.model_validate({**given, "flips": "none"}))
    with pytest.raises(UserError, match="files of another model, or others"):
        job.export(ExportJob.model_validate({**given, "out": str(model)}))


def test_a_missing_package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UserError, match=r"the package onnxscript is not installed. pip install -c constraints\.txt -e '\.\[export\]'"
    ):
        job.export(ExportJob(run=str(model), out=str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "nowhere"), "expected a finished run, or the folder of its model (best/), found no preproc"),
        (("--run", ".", "--format", "torchscript", "--int8"), "--int8 is for --format onnx, found torchscript"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("export", [*arguments, "--out", str(tmp_path)]) == MISTAKE
    assert message in capsys.readouterr().err
