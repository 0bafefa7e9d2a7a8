"""Prediction and evaluation with networks in processes of their own, with a resource of Ray in place of a GPU."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pytest

from lungseg_ray.cluster import watchdog
from lungseg_ray.cluster.chunks import Work, map_chunks
from lungseg_ray.config import EvaluateSettings, PredictJob
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.evaluation.measure import MeasureChunk, MeasuredImage
from lungseg_ray.imaging import png, png_with_texts, texts_of_png
from lungseg_ray.inference.predictor import Model
from lungseg_ray.jobs.predict import Prediction, _Predict
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.shards.describe import Outcome
from lungseg_ray.storage import Location, locate
from tests.conftest import STAND_IN
from tests.inference.helpers import save_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two random networks as one."""
    runs = [Run(locate(str(tmp_path_factory.mktemp("run")))) for _ in range(2)]
    for number, run in enumerate(runs):
        save_small_model(run.place / BEST, size=32 * (number + 1))
    return Model(tuple(runs), flips="horizontal")


def both(work: Work, count: int, kind: type[Any]) -> tuple[list[object], list[object]]:
    """The rows where tasks run the networks, and where a process with a device does."""
    return list(map_chunks(work, count, kind, device="cpu")), list(map_chunks(work, count, kind, resource=STAND_IN))


@pytest.mark.usefixtures("cluster")
def test_evaluation(model: Model, sharded: Outcome) -> None:
    images = ShardImages.of(sharded.root, sharded.index.shards)
    work = MeasureChunk(model, images, EvaluateSettings(), size=4)
    one, other = both(work, -(-len(images) // 4), MeasuredImage)
    assert one == other
    assert len(one) == len(images)


@pytest.mark.usefixtures("cluster")
def test_prediction(model: Model, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(7):
        cv2.imwrite(str(images / f"{number}.png"), draw(number, seed=0, size=100 + number)[0])
    (images / "broken.png").write_bytes(b"no image")
    names = pa.array(sorted(path.name.encode() for path in images.iterdir()), pa.large_binary())

    made: dict[str, list[object]] = {}
    for out, options in (("one", {"device": "cpu"}), ("other", {"resource": STAND_IN})):
        given = {"run": str(tmp_path), "images": str(images), "out": str(tmp_path / out), "batch": 3}
        job = PredictJob.model_validate({**given, "overlay": True})
        work = _Predict(job, model, names, size=3)
        made[out] = sorted(map_chunks(work, 3, Prediction, **options), key=repr)  # type: ignore[arg-type]
    assert made["one"] == made["other"]
    assert len(made["one"]) == 8
    files = {
        out: {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*.png")}
        for out in made
    }
    assert files["one"] == files["other"]
    assert len(files["one"]) == 14


@dataclass(frozen=True)
class Failing:
    """Work whose stages fail as they are told to."""

    stage: str
    error: type[Exception]

    def _maybe(self, stage: str, chunk: int) -> int:
        if stage == self.stage and chunk == 2:
            raise self.error("what went wrong")
        return chunk

    def prepare(self, chunk: int) -> tuple[int, int]:
        return self._maybe("prepare", chunk), chunk

    def compute(self, given: int, device: str) -> int:
        return self._maybe("compute", given)

    def finish(self, prepared: int, computed: int) -> list[Location]:
        self._maybe("finish", computed)
        return []


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("stage", "error"), [("prepare", UserError), ("compute", JobFailedError), ("finish", OSError)])
def test_errors_of_every_stage(stage: str, error: type[Exception]) -> None:
    for options in ({"device": "cpu"}, {"resource": STAND_IN}):
        with pytest.raises(error, match="what went wrong"):
            list(map_chunks(Failing(stage, error), 4, Prediction, **options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ending:
    """Work that ends the process of its networks some times."""

    folder: Path
    times: int

    def prepare(self, chunk: int) -> tuple[int, int]:
        return chunk, chunk

    def compute(self, given: int, device: str) -> int:
        times = len([*self.folder.iterdir()])
        if times < self.times:
            (self.folder / str(times)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return given

    def finish(self, prepared: int, computed: int) -> list[Prediction]:
        return [Prediction(f"{prepared} {computed}", "done")]


@pytest.mark.usefixtures("cluster")
def test_a_process_with_a_device_that_ends_is_replaced(tmp_path: Path) -> None:
    found = list(map_chunks(Ending(tmp_path, times=1), 20, Prediction, resource=STAND_IN))
    assert [one.image for one in found] == [f"{chunk} {chunk}" for chunk in range(20)]
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.usefixtures("cluster")
def test_a_process_with_a_device_that_always_ends(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match=r"networks ended 3 times in succession.*smaller batch"):
        list(map_chunks(Ending(tmp_path, times=100), 1, Prediction, resource=STAND_IN))


@dataclass(frozen=True)
class Waiting:
    """Work that waits for a file before it goes on."""

    file: Path

    def prepare(self, chunk: int) -> tuple[int, None]:
        while not self.file.exists():
            time.sleep(0.1)
        return chunk, None

    def compute(self, given: None, device: str) -> None:
        pass

    def finish(self, prepared: int, computed: None) -> list[Prediction]:
        return [Prediction(str(prepared), "done")]


@pytest.mark.usefixtures("cluster")
def test_work_that_does_not_move_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "FIRST_REPORT_SECONDS", 1.0)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 3.0)
    with pytest.raises(JobFailedError, match=r"^Nothing has moved for 3 s\. Waited for: [12] task\(s\) that"):
        list(map_chunks(Waiting(tmp_path / "go"), 2, Prediction, device="cpu"))
    (tmp_path / "go").touch()
    said = capsys.readouterr()
    assert re.match(r"Nothing has moved for [123] s\. Waiting for: ", said.err)
    assert "issue" not in said.out + said.err
    # What was left does not disturb the next, whose processes may have to start.
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 60.0)
    assert len(list(map_chunks(Waiting(tmp_path / "go"), 2, Prediction, device="cpu"))) == 2


def test_a_damaged_mask_is_made_again(model: Model, tmp_path: Path) -> None:
    image = png(draw(0, seed=0, size=100)[0])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(image)
    mask = png_with_texts(draw(0, seed=0, size=100)[1] * 255, {"Source SHA-256": hashlib.sha256(image).hexdigest()})
    place = tmp_path / "out/masks/a.png.png"
    place.parent.mkdir(parents=True)
    given = {"run": str(tmp_path), "images": str(tmp_path / "images"), "out": str(tmp_path / "out")}
    work = _Predict(PredictJob.model_validate(given), model, pa.array([b"a.png"], pa.large_binary()), size=4)

    for content, before in ((mask, 1), (mask[: len(mask) // 2], 0)):
        place.write_bytes(content)
        assert texts_of_png(content)
        batch, _ = work.prepare(0)
        assert [one.status for one in batch.found] == ["done before"] * before
        assert [one.status for one in batch.images] == ["done anew"] * (1 - before)
