from __future__ import annotations

from typing import Any

import pytest

from lungseg_ray.training.events import EpochDone, Note, StepDone
from lungseg_ray.workers import metrics
from lungseg_ray.workers.metrics import Metrics


class Kept:
    """A metric that keeps what it is given."""

    values: dict[str, list[float]]

    def __init__(self, name: str, text: str, keys: tuple[str, ...]) -> None:
        self.values.setdefault(name, [])
        self._name = name
        assert text
        assert keys == ("run", "rank")

    def set_default_tags(self, tags: dict[str, str]) -> Kept:
        assert tags == {"run": "mine", "rank": "1"}
        return self

    def set(self, value: float) -> None:
        self.values[self._name].append(value)

    def inc(self) -> None:
        self.values[self._name].append(1)


def test_figures_of_an_epoch_are_set_again_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    Kept.values = {}
    monkeypatch.setattr(metrics, "Gauge", Kept)
    monkeypatch.setattr(metrics, "Counter", Kept)
    own = Metrics("mine", 1)
    row: dict[str, Any] = {"epoch": 2, "val_loss": 0.4, "val_iou": 0.8, "val_dice": 0.9, "checkpoint_wait": 0.0}
    own.record(EpochDone(row))
    own.record(StepDone(3, 1, 5, loss=0.5, images_per_second=8.0, data_wait_share=0.1, time=0.0))
    own.record(Note("left out", "step_skipped"))
    own.record(Note("something else"))
    assert Kept.values["lungseg_validation_iou"] == [0.8, 0.8]
    assert Kept.values["lungseg_images_per_second"] == [8.0]
    assert Kept.values["lungseg_skipped_steps"] == [1]
    assert Kept.values["lungseg_starts"] == []
