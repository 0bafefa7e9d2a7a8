from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lungseg_ray.errors import JobFailedError
from lungseg_ray.run import checkpoint, checkpoint_writer
from lungseg_ray.run.checkpoint import Checkpoint
from lungseg_ray.run.checkpoint_writer import CheckpointWriter
from lungseg_ray.run.folder import HISTORY, Run
from lungseg_ray.run.lease import LeaseToken, Owner
from lungseg_ray.run.progress import Progress
from lungseg_ray.storage import locate
from tests.helpers import find_damage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(locate(str(tmp_path / "run")))


@pytest.fixture
def said() -> list[str]:
    return []


def content(step: int, *losses: float) -> Checkpoint:
    """A checkpoint after `step` steps; epochs have 10."""
    rows: list[dict[str, float]] = [
        {"epoch": epoch, "step": 10 * epoch, "val_loss": loss} for epoch, loss in enumerate(losses, start=1)
    ]
    progress = Progress(epoch=len(rows), step=step, precision="fp32", history=rows)
    return Checkpoint({"w": torch.full((2,), float(step))}, None, {"lr": [0.1]}, progress)


def writer_of(run: Run, note: Callable[[str], None], *, patience: float = 0) -> CheckpointWriter:
    """A writer that keeps the best epoch, for a driver that holds the run."""
    owner = Owner.here()
    (run.place / "lease-000001.json").write_text(json.dumps(asdict(owner)))
    return CheckpointWriter(
        run, best=1, patience=patience, note=note, on_attempt=lambda: None, token=LeaseToken(run.place, owner)
    )


def steps(run: Run) -> list[int]:
    return [checkpoint.step_of(place) for place in checkpoint.list_checkpoints(run.place)]


def test_what_is_kept(run: Run, said: list[str]) -> None:
    one = writer_of(run, said.append)
    for made in (content(5), content(10, 0.5), content(15, 0.5), content(20, 0.5, 0.7), content(25, 0.5, 0.7)):
        one.save(made)
    one.flush()
    # The best epoch is the first, after step 10; the latest two are 25 and 20.
    assert steps(run) == [25, 20, 10]
    assert [find_damage(place) for place in checkpoint.list_checkpoints(run.place)] == [None] * 3
    assert one.last is not None
    assert one.last.name == checkpoint.folder_name(25)
    assert (run.place / HISTORY).read_text().splitlines()[1:] == ["1,10,0.5", "2,20,0.7"]
    assert {path.name for path in Path(run.place.path).iterdir()} == {
        *(checkpoint.folder_name(step) for step in (10, 20, 25)),
        *(HISTORY, "lease-000001.json"),
    }
    assert said == []


def test_training_waits_for_the_one_before_alone(run: Run, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = checkpoint.write_folder

    def slow(directory: Path, made: Checkpoint) -> None:
        assert gate.wait(10)
        write(directory, made)

    monkeypatch.setattr(checkpoint, "write_folder", slow)
    one = writer_of(run, said.append)
    made = content(5)
    one.save(made)
    assert steps(run) == []
    made.weights["w"].fill_(99.0)
    # One that can be spared is.
    one.save(content(7), skip_if_busy=True)
    gate.set()
    one.save(content(10))
    one.flush()
    assert steps(run) == [10, 5]
    # What was changed after the call is not in it.
    assert checkpoint.read_checkpoint(run.place / checkpoint.folder_name(5)).weights["w"].tolist() == [5.0, 5.0]


def test_trouble_is_told_and_the_end_is_the_error(run: Run, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [True]
    put = checkpoint_writer._put

    def broken(*arguments: Any) -> None:
        if failing[0]:
            raise OSError(28, "No space left on device")
        put(*arguments)

    monkeypatch.setattr(checkpoint_writer, "_put", broken)
    one = writer_of(run, said.append)
    one.save(content(5))
    one.flush()
    assert one.error is not None
    assert "No space left on device" in str(one.error)
    assert one.last is None
    # From then on none is written: the run ends.
    failing[0] = False
    one.save(content(10))
    one.flush()
    assert steps(run) == []


def test_a_full_disk_passes(run: Run, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    put = checkpoint_writer._put

    def broken(*arguments: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        put(*arguments)

    monkeypatch.setattr(checkpoint_writer, "_put", broken)
    one = writer_of(run, said.append, patience=30)
    one.save(content(5))
    one.flush()
    assert one.error is None
    assert steps(run) == [5]
    assert "Checkpoint of step 5" in said[0]
    assert "No space left on device" in said[0]
    assert len(said) == 2


def test_one_of_the_same_name_is_replaced(run: Run, said: list[str]) -> None:
    damaged = Path(run.place.path) / checkpoint.folder_name(5)
    damaged.mkdir(parents=True)
    (damaged / checkpoint.WEIGHTS).write_bytes(b"cut")
    one = writer_of(run, said.append)
    one.save(content(5))
    one.flush()
    assert find_damage(run.place / checkpoint.folder_name(5)) is None


def test_one_whose_driver_has_lost_the_run_writes_nothing(run: Run, said: list[str]) -> None:
    one = writer_of(run, said.append)
    one.save(content(5))
    one.flush()
    other = replace(Owner.here(), host="elsewhere", born="2")
    (run.place / "lease-000002.json").write_text(json.dumps(asdict(other)))
    one.save(content(10))
    one.flush()
    assert isinstance(one.error, JobFailedError)
    assert "taken over by process" in str(one.error)
    assert steps(run) == [5]


def test_newer_ones_that_were_passed_over_do_not_count_as_the_latest(run: Run, said: list[str]) -> None:
    one = writer_of(run, said.append)
    one.save(content(50))
    one.flush()
    for step in (57, 58):
        (Path(run.place.path) / checkpoint.folder_name(step)).mkdir()
    one.save(content(53))
    one.flush()
    assert steps(run) == [53, 50]
