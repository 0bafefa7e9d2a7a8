from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lungseg_ray.training import loop, precision
from lungseg_ray.training.events import Started
from lungseg_ray.training.loop import train_loop
from lungseg_ray.training.precision import Precision, fastest_precision
from tests.helpers import make_settings
from tests.training.test_loop import STEPS, Memory, learner, make_batch, run


class TestPrecision:
    @pytest.mark.parametrize("slow", ["fp32", "bf16"])
    def test_fastest_on_a_cpu(self, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = [0.0]
        autocast = precision.autocast

        @contextmanager
        def timed(device: torch.device, kind: Precision) -> Iterator[None]:
            with autocast(device, kind):
                yield
            seconds[0] += 2 if kind == slow else 1

        monkeypatch.setattr(precision, "autocast", timed)
        monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
        assert {slow, fastest_precision(make_settings(), torch.device("cpu"))} == {"fp32", "bf16"}

    def test_auto_asks_the_probe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "fastest_precision", lambda *_: "fp32")
        runtime, progress = run(make_settings(train={"epochs": 1, "precision": "auto"}), tmp_path)
        assert progress.precision == runtime.newest().progress.precision == "fp32"

    def test_a_run_that_goes_on_keeps_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = make_settings(train={"epochs": 2, "precision": "auto"})
        monkeypatch.setattr(loop, "fastest_precision", lambda *_: "fp32")
        with pytest.raises(KeyboardInterrupt):
            train_loop(settings, steps_per_epoch=STEPS, runtime=Memory(tmp_path, stop_after=STEPS))
        monkeypatch.setattr(loop, "fastest_precision", lambda *_: pytest.fail("was probed again"))
        runtime, progress = run(settings, tmp_path)
        started = runtime.events[0]
        assert isinstance(started, Started)
        assert started.precision == progress.precision == "fp32"

    def test_networks_with_several_outputs_can_be_probed(self) -> None:
        for architecture, encoder in (("U2Net", "rsu_small"), ("PraNet", "resnet18")):
            settings = make_settings(model={"architecture": architecture, "encoder": encoder}, feed={"size": 64})
            assert fastest_precision(settings, torch.device("cpu")) in ("fp32", "bf16")

    def test_logits_are_float32(self) -> None:
        one = learner(make_settings(), precision="bf16")
        with torch.no_grad():
            assert one.forward(one.model.eval(), make_batch(0).images)[0].dtype == torch.float32
