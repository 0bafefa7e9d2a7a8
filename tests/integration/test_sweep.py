"""A sweep of six trials on two CPUs, two of which cannot be trained, and what can be done with it afterwards."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from rich.console import Console

from lungseg_ray.config import EvaluateJob, SweepJob, TrainJob
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.evaluate import evaluate_run
from lungseg_ray.jobs.train import winner_of
from lungseg_ray.jobs.tune import tune
from lungseg_ray.storage import locate
from lungseg_ray.sweep.ledger import Sweep, Trial
from tests.helpers import make_settings, write_shards

pytestmark = [pytest.mark.own_cluster, pytest.mark.timeout(280)]


def job_for(root: Path, **changed: Any) -> SweepJob:
    """Two architectures with three encoders, of which one does not exist."""
    searched = {
        "space": {
            "model.encoder": {"grid": ["timm-regnety_002", "mobilenet_v2", "tu-vit_tiny_patch16_224"]},
            "model.architecture": {"grid": ["Linknet", "Unet"]},
        },
        "finalists": 2,
        "seeds": 2,
    }
    settings = make_settings(
        corpus={"root": "somewhere"},
        shards={"root": str(root / "shards")},
        runs={"root": str(root / "runs"), "name": "small"},
        train={"epochs": 3},
        checkpoint={"keep": 1},
        evaluate={"resamples": 20, "robustness": 0},
    )
    return SweepJob.model_validate({**settings.model_dump(), "sweep": {**searched, **changed}})


@dataclass
class Finished:
    job: SweepJob
    sweep: Sweep
    found: Any
    output: str


def go(job: SweepJob) -> tuple[Any, str]:
    console = Console(file=io.StringIO(), width=200)
    found = tune(job, console)
    return found, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    root = tmp_path_factory.mktemp("sweep")
    write_shards(locate(str(root / "shards")), rows={"train": [7, 6], "val": [4], "test": [3]}, skip={})
    job = job_for(root)
    ray.shutdown()
    # The cluster that the other tests share had a token of its own.
    AuthenticationTokenLoader.instance().reset_cache()
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    try:
        found, output = go(job)
        yield Finished(job, Sweep(locate(str(root / "runs/small"))), found, output)
    finally:
        ray.shutdown()


def trials(finished: Finished, stage: int) -> list[Trial]:
    return [trial for trial in finished.sweep.trials() if trial.stage == stage]


class TestSweep:
    def test_each_combination_is_a_row(self, finished: Finished) -> None:
        search = trials(finished, 1)
        assert len({trial.description for trial in search}) == 6
        assert {trial.state for trial in search} == {"failed", "paused", "done"}

    def test_one_that_cannot_be_trained_has_its_reason(self, finished: Finished) -> None:
        failed = [trial for trial in trials(finished, 1) if trial.state == "failed"]
        assert [trial.params["model.encoder"] for trial in failed] == ["tu-vit_tiny_patch16_224"] * 2
        assert all("does not work with encoder tu-vit_tiny_patch16_224" in trial.reason for trial in failed)

    def test_one_of_two_goes_on_after_the_first_rung(self, finished: Finished) -> None:
        # Of the four that can be trained, 4 // 2 = 2 go on from 1 to 3 epochs.
        assert sorted(trial.epochs for trial in trials(finished, 1)) == [0, 0, 1, 1, 3, 3]

    def test_finalists_are_trained_with_other_seeds_and_measured(self, finished: Finished) -> None:
        final = trials(finished, 2)
        assert [(trial.seed, trial.state, trial.epochs) for trial in final] == [
            (seed, "done", 3) for seed in (1, 1, 2, 2)
        ]
        assert [row["seeds"] for row in finished.found["finalists"]] == [[1, 2], [1, 2]]
        assert finished.found["finalists"][1]["behind"]["n"] == 2
        for trial in final:
            summary = finished.sweep.run(trial).summary()
            assert summary is not None
            assert summary["test"] is not None
            assert summary["test"]["n"] == 3
        assert all(finished.sweep.run(trial).summary() is None for trial in trials(finished, 1))

    def test_a_trial_is_a_run_whose_figures_the_ledger_has(self, finished: Finished) -> None:
        for trial in finished.sweep.trials():
            history = finished.sweep.history(trial)
            assert len(history) == trial.epochs
            if history:
                best = min(history, key=lambda row: row["val_loss"])
                assert trial.score == best["val_iou"]
                assert trial.best_epoch == best["epoch"]
                assert trial.startup is not None
                assert trial.parameters is not None
                assert trial.parameters > 1e6

    def test_it_is_told_and_drawn(self, finished: Finished) -> None:
        assert finished.output.count("epochs, IoU") == 10
        assert (finished.sweep.place / "report.html").exists()
        for trial in finished.sweep.trials():
            assert (finished.sweep.place / "tensorboard" / trial.name).exists() == bool(trial.epochs)

    def test_the_same_command_says_that_it_is_finished(self, finished: Finished) -> None:
        before = finished.sweep.trials()
        found, output = go(finished.job)
        assert "is finished" in output
        assert found == finished.found
        assert finished.sweep.trials() == before

    def test_another_space_under_its_name_is_refused(self, finished: Finished) -> None:
        space = {"model.encoder": {"grid": ["resnet18"]}}
        other = finished.job.model_dump()
        other["sweep"] |= {"space": space}
        with pytest.raises(UserError, match=r"started otherwise(.|\n)*sweep\.space"):
            go(SweepJob.model_validate(other))

    def test_more_seeds_go_on_with_it(self, finished: Finished) -> None:
        other = finished.job.model_dump()
        other["sweep"] |= {"seeds": 3}
        found, _ = go(SweepJob.model_validate(other))
        assert [row["seeds"] for row in found["finalists"]] == [[1, 2, 3]] * 2
        assert len(finished.sweep.trials()) == 12

    def test_the_winner_is_trained_as_a_run_of_its_own(self, finished: Finished) -> None:
        job = TrainJob.model_validate({"from_sweep": str(finished.sweep.place), "train": {"threads": 2}})
        settings = winner_of(job)
        params = finished.found["winner"]["params"]
        assert settings.model.encoder == params["model.encoder"]
        assert settings.model.architecture == params["model.architecture"]
        assert settings.runs.name == "small-winner"
        assert settings.train.threads == 2
        assert settings.train.precision == "fp32"

    def test_its_best_are_an_ensemble(self, finished: Finished) -> None:
        job = EvaluateJob.model_validate(
            {
                "run": str(finished.sweep.place),
                "top": 2,
                "flips": "horizontal",
                "evaluate": {"resamples": 20, "robustness": 0},
            }
        )
        result, out = evaluate_run(job)
        assert result["n"] == 3
        assert str(out).startswith(f"{finished.sweep.place}/evaluation/")
