from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lungseg_ray.jobs.display import TrainingDisplay
from lungseg_ray.progress import ticks
from lungseg_ray.storage import locate
from lungseg_ray.training.events import EpochDone, Event, Note, Started, StepDone

START = Started(
    epoch=0,
    step=0,
    step_in_epoch=0,
    steps_per_epoch=10,
    workers=2,
    device="cpu",
    precision="fp32",
    matrix_rate=1e11,
    threads=1,
    parameters=3_015_811,
    frozen=(),
    best=None,
    began=1.0,
    time=2.0,
)
ROW = {
    **{"epoch": 1, "step": 10, "loss": 0.61234, "loss_dice": 0.30004, "loss_bce": 0.39037},
    **{"val_loss": 0.5, "val_iou": 0.71239, "val_dice": 0.83211, "lr": 0.00123, "encoder_lr": 0.00012},
    **{
        "images_per_second": 12.34,
        "data_wait_share": 0.0316,
        "checkpoint_wait": 0.25,
        "train_seconds": 30.0,
        "seconds": 41.6,
    },
}


@pytest.fixture
def console() -> Console:
    return Console(record=True, file=io.StringIO(), width=60)


def shown(console: Console, place: Path, events: Sequence[Event], *, epochs: int = 36) -> list[str]:
    with TrainingDisplay(console, locate(str(place)), epochs) as display:
        for event in events:
            display(event)
    return console.export_text().splitlines()


def test_line_of_an_epoch(console: Console, tmp_path: Path) -> None:
    line = shown(console, tmp_path, [START, EpochDone(ROW)])[-1]
    assert line == (
        "epoch   1/36  loss 0.6123 (Dice 0.3000, BCE 0.3904)  val 0.5000  IoU 0.7124  Dice 0.8321"
        "  lr 1.2e-03  12.3 images/s  data wait 3.2%  checkpoint wait 0.2 s  42 s *"
    )


def test_the_best_so_far_is_marked(console: Console, tmp_path: Path) -> None:
    losses = [0.5, 0.4, 0.4, 0.45, 0.42, 0.3]
    events = [EpochDone({**ROW, "epoch": at, "val_loss": loss}) for at, loss in enumerate(losses, 1)]
    lines = shown(console, tmp_path, events)
    assert [line.endswith("*") for line in lines] == [True, True, False, False, False, True]


def test_start(console: Console, tmp_path: Path) -> None:
    text = " ".join(
        shown(console, tmp_path, [replace(START, epoch=3, step=34, step_in_epoch=4, frozen=("a.b", "c.d"))])
    )
    assert "Training from epoch 4, step 5 of 10, on 2 worker(s): cpu,  fp32, 1 thread(s)" in text
    assert "3.0 M parameters" in text
    assert "2 parameters get no gradient" in text
    assert "a.b the first" in text


def test_note_and_start_from_the_beginning(console: Console, tmp_path: Path) -> None:
    lines = shown(console, tmp_path, [Note("[1/2] [/file.cc:5] passed over"), START])
    assert lines[0].startswith("[1/2] [/file.cc:5] passed over")
    assert "Training from the start" in lines[1]
    assert "no gradient" not in " ".join(lines)


def test_quiet(console: Console, tmp_path: Path) -> None:
    with TrainingDisplay(console, locate(str(tmp_path)), 2, quiet=True) as display:
        for event in (START, EpochDone(ROW), Note("a worker is lost")):
            display(event)
    assert console.export_text().splitlines() == ["a worker is lost"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_first_step_is_the_first(console: Console, tmp_path: Path) -> None:
    with TrainingDisplay(console, locate(str(tmp_path)), 2) as display:
        assert display.first_step is None
        display(StepDone(1, 1, 5, loss=0.5, images_per_second=8.0, data_wait_share=0.1, time=100.0))
        display(StepDone(1, 2, 5, loss=0.5, images_per_second=8.0, data_wait_share=0.1, time=200.0))
    assert display.first_step == 100


def test_tensorboard(console: Console, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    later = {**ROW, "epoch": 2, "val_loss": 0.25}
    shown(console, tmp_path, [START, *(EpochDone(row) for row in (ROW, later))])
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert {"train/loss", "train/lr", "val/loss", "val/iou", "time/seconds"} <= set(found.Tags()["scalars"])
    assert not {"train/epoch", "train/step"} & set(found.Tags()["scalars"])
    assert [(event.step, event.value) for event in found.Scalars("val/loss")] == [(1, 0.5), (2, 0.25)]


def test_ticks_hand_on_everything() -> None:
    assert list(ticks(iter("abc"), total=3, description="Working")) == ["a", "b", "c"]
