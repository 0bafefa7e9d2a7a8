import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lungseg_ray.config import SweepJob, TrainJob
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.members import best_runs
from lungseg_ray.jobs.train import winner_of
from lungseg_ray.run.folder import HISTORY
from lungseg_ray.run.progress import FIGURES
from lungseg_ray.storage import locate
from lungseg_ray.sweep.ledger import Sweep, Trial, describe_params, rank_trials
from tests.run.test_checkpoint_writer import content, writer_of


def make_job(**sections: Any) -> SweepJob:
    return SweepJob.model_validate({"sweep": {"space": {"optim.lr": {"grid": [1e-3, 1e-2]}}}, **sections})


def make_trial(number: int, scores: list[float], **facts: Any) -> Trial:
    base = {"number": number, "name": f"t{number}", "stage": 1, "params": {"optim.lr": 1e-3}, "seed": 0}
    return Trial.model_validate({**base, "scores": scores, **facts})


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    place = Sweep(locate(str(tmp_path / "sweep")))
    place.config.write(make_job(), fingerprint="f" * 64)
    return place


class TestSweep:
    def test_trials_come_back_as_they_were_written(self, sweep: Sweep) -> None:
        assert sweep.trials() == []
        trials = [make_trial(2, []), make_trial(1, [0.1, 0.25], state="paused", startup=1.5)]
        sweep.write_trials(trials, {"stage 1": 2.5})
        assert sweep.trials() == trials[::-1]
        assert sweep.seconds() == {"stage 1": 2.5}

    def test_goes_on_with_what_does_not_change_scores(self, sweep: Sweep) -> None:
        changed = make_job(train={"stall_seconds": 60}, runs={"root": "elsewhere"})
        more = changed.model_copy(update={"sweep": changed.sweep.model_copy(update={"finalists": 7, "concurrent": 3})})
        assert sweep.can_resume(more, fingerprint="f" * 64)

    @pytest.mark.parametrize(
        ("job", "fingerprint", "said"),
        [
            (make_job(feed={"size": 64}), "f" * 64, "feed.size: 128 -> 64"),
            (make_job(), "e" * 64, "fingerprint ffffffffffff -> eeeeeeeeeeee"),
            (
                SweepJob.model_validate({"sweep": {"space": {"optim.lr": {"grid": [1e-3]}}}}),
                "f" * 64,
                r"sweep.space.optim.lr.grid: \[0.001, 0.01\] -> \[0.001\]",
            ),
        ],
    )
    def test_refuses_others_under_its_name(self, sweep: Sweep, job: SweepJob, fingerprint: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            sweep.can_resume(job, fingerprint=fingerprint)

    def test_there_is_none(self, tmp_path: Path) -> None:
        place = Sweep(locate(str(tmp_path / "nowhere")))
        assert not place.can_resume(make_job(), fingerprint=None)
        with pytest.raises(UserError, match="there is no sweep here"):
            place.started_with()

    def test_a_ledger_that_cannot_be_read_is_named(self, sweep: Sweep) -> None:
        (sweep.place / "trials.json").write_text("{")
        with pytest.raises(UserError, match=r"trials\.json: expected what this version writes there"):
            sweep.trials()


def test_a_history_that_a_killed_process_has_not_written(sweep: Sweep) -> None:
    trial = make_trial(1, [0.5, 0.7])
    sweep.write_trials([trial, make_trial(2, [])], {})
    run = sweep.run(trial)
    writer = writer_of(run, print)
    saved = content(20, 0.5, 0.7)
    for row in saved.progress.history:
        row.update(dict.fromkeys(FIGURES - row.keys(), 0.5))
    writer.save(saved)
    writer.flush()
    whole = sweep.history(trial)
    assert len(whole) == 2
    (run.place / HISTORY).delete()
    sweep.reopen()
    assert sweep.history(trial) == whole


class TestRanked:
    def test_farther_first_then_better_then_earlier(self) -> None:
        trials = [
            make_trial(1, [0.9]),
            make_trial(2, [0.1, 0.5]),
            make_trial(3, [0.1, 0.7]),
            make_trial(4, [0.1, 0.7]),
            make_trial(5, []),
            make_trial(6, [0.9, 0.9, 0.9], state="failed"),
        ]
        assert [trial.number for trial in rank_trials(trials)] == [3, 4, 2, 1]


class TestBest:
    def test_finalists_come_before_the_search(self, sweep: Sweep) -> None:
        search = [make_trial(1, [0.9], state="done"), make_trial(2, [0.95], state="paused")]
        sweep.write_trials(search, {})
        assert [run.place.name for run in best_runs(sweep, 1)] == ["t1"]
        final = [make_trial(number, [score], stage=2, state="done") for number, score in ((3, 0.5), (4, 0.6), (5, 0.4))]
        sweep.write_trials([*search, *final], {})
        assert [run.place.name for run in best_runs(sweep, 2)] == ["t4", "t3"]
        with pytest.raises(UserError, match=r"3 trial\(s\) of stage 2 went to full length; 4 are asked for"):
            best_runs(sweep, 4)


class TestWinner:
    def test_settings_of_a_command_that_do_not_fit_it(self, sweep: Sweep) -> None:
        nothing: Any = {}
        sweep.write_summary(nothing, make_job().trial({"optim.lr": 1e-2}))
        (sweep.place / "winner.yaml").write_text("feed: {batch: 4}")
        with pytest.raises(UserError, match=r"feed\.batch must divide"):
            winner_of(TrainJob.model_validate({"from_sweep": str(sweep.place), "train": {"workers": 8}}))
        for text, said in (
            ("[1]", "expected settings"),
            ("a: [", "cannot be read"),
            ("train: {epochs: many}", r"train\.epochs"),
        ):
            (sweep.place / "winner.yaml").write_text(text)
            with pytest.raises(UserError, match=said):
                winner_of(TrainJob.model_validate({"from_sweep": str(sweep.place)}))

    def test_its_settings_are_below_those_of_the_command(self, sweep: Sweep) -> None:
        winner = make_job().trial({"optim.lr": 1e-2})
        nothing: Any = {}
        sweep.write_summary(nothing, winner)
        found = winner_of(TrainJob.model_validate({"from_sweep": str(sweep.place), "optim": {"encoder_lr": 0.5}}))
        assert (found.optim.lr, found.optim.encoder_lr) == (1e-2, 0.5)
        assert found.runs.name == "sweep-winner"
        assert "runs" not in yaml.safe_load((sweep.place / "winner.yaml").read_text())

    def test_not_before_the_sweep_is_finished(self, sweep: Sweep) -> None:
        with pytest.raises(UserError, match="the sweep has no winner yet"):
            winner_of(TrainJob.model_validate({"from_sweep": str(sweep.place)}))

    def test_a_command_without_a_sweep_is_as_it_was(self) -> None:
        assert winner_of(TrainJob.model_validate({"train": {"epochs": 3}})).train.epochs == 3


def test_values_are_described_in_few_words() -> None:
    params = {"model.encoder": "vgg11", "optim.lr": 0.0031622, "feed.batch": 8}
    assert describe_params(params) == "vgg11, lr 0.00316, batch 8"


@pytest.mark.parametrize("name", ["../../victim", "/etc", "..", "a/b", "", "a\\b"])
def test_a_name_that_leaves_the_folder(name: str, tmp_path: Path) -> None:
    sweep = Sweep(locate(str(tmp_path / "sweep")))
    sweep.write_trials([Trial(number=1, name="t1", stage=1, params={}, seed=0)], {})
    place = sweep.place / "trials.json"
    content = json.loads(place.read_text())
    content["trials"][0]["name"] = name
    place.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"trials\.json: expected what this version writes.*expected the name of a file in this folder"
    ):
        sweep.trials()
