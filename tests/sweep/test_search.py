import random
from typing import Any

import numpy as np
import pytest

from lungseg_ray.config import SweepJob
from lungseg_ray.sweep.ledger import Trial, TrialUpdate, rank_trials
from lungseg_ray.sweep.search import Move, Search, count, draw, epochs_to_come

ENCODERS = ["resnet18", "resnet34", "vgg11", "vgg13", "vgg16", "vgg19", "densenet121", "mobilenet_v2"]
GRID = {"model.encoder": {"grid": ENCODERS}, "model.architecture": {"grid": ["Unet", "UnetPlusPlus"]}}


def make_job(*, epochs: int = 12, space: dict[str, Any] | None = None, **sweep: Any) -> SweepJob:
    searched = {"space": GRID if space is None else space, "reduction": 3, **sweep}
    return SweepJob.model_validate({"train": {"epochs": epochs}, "sweep": searched})


def quality(trial: Trial) -> float:
    """The IoU that a trial comes to; it follows from its values."""
    return float(np.random.default_rng([len(trial.description), *trial.description.encode()]).uniform(0.6, 0.9))


def scores(trial: Trial, epochs: int) -> list[float]:
    return [quality(trial) * (1 - 0.5 ** (epoch + 1)) for epoch in range(epochs)]


def landed(trial: Trial, until: int) -> dict[str, Any]:
    """What a trial says when it leaves off."""
    return {"scores": scores(trial, until), **({"state": "done"} if until == 12 else {})}


def play(job: SweepJob, *, concurrent: int = 2, cut_after: int | None = None, seed: int = 0) -> Search:
    """Lands trials in random order until there is no move left; after `cut_after` landings another driver goes on."""
    chance, search, count_landed = random.Random(seed), Search(job, [], 1), 0
    running: list[Move] = []
    while True:
        while len(running) < concurrent and (move := search.next()):
            running.append(move)
        if not running:
            return search
        move = running.pop(chance.randrange(len(running)))
        full = {"state": "done"} if move.stop_after_epoch == job.epochs else {}
        search.end(
            move.trial.number, TrialUpdate.model_validate({"scores": scores(move.trial, move.stop_after_epoch), **full})
        )
        count_landed += 1
        if count_landed == cut_after:
            search, running = Search(job, search.trials, 1), []


class TestRungs:
    def test_count_down_from_the_full_length(self) -> None:
        assert make_job(epochs=12).rungs == [1, 4, 12]
        assert make_job(epochs=10).rungs == [1, 3, 10]
        assert make_job(epochs=100, grace=5, reduction=4).rungs == [6, 25, 100]
        assert make_job(epochs=2).rungs == [2]

    def test_none_without_asha(self) -> None:
        assert make_job(epochs=12, stop="none").rungs == [12]


class TestHalving:
    def test_first_all_then_a_third_then_one(self) -> None:
        search = play(make_job(), concurrent=1)
        # 16 trials of 1 epoch; 16 // 3 = 5 go on to 4; 5 // 3 = 1 goes on to 12.
        assert sorted(trial.epochs for trial in search.trials) == [1] * 11 + [4] * 4 + [12]
        assert sum(trial.epochs for trial in search.trials) == 39
        best = max(search.trials, key=quality)
        assert rank_trials(search.trials)[0] == best
        assert best.state == "done"
        assert {trial.state for trial in search.trials if trial != best} == {"paused"}

    @pytest.mark.parametrize("concurrent", [1, 2, 5, 16, 40])
    @pytest.mark.parametrize("budget", [{}, {"minutes": 60}])
    def test_the_best_wins_however_many_at_a_time(self, concurrent: int, budget: dict[str, float]) -> None:
        search = play(make_job(budget=budget), concurrent=concurrent)
        assert rank_trials(search.trials)[0] == max(search.trials, key=quality)
        assert len({trial.description for trial in search.trials}) == 16

    def test_with_an_end_of_time_promotions_come_first(self) -> None:
        search = Search(make_job(budget={"minutes": 60}), [], 1)
        for number in (1, 2, 3):
            move = search.next()
            assert move is not None
            assert (move.trial.number, move.stop_after_epoch) == (number, 1)
            search.end(number, TrialUpdate(scores=(0.1 * number,)))
        move = search.next()
        assert move is not None
        assert (move.trial.number, move.stop_after_epoch) == (3, 4)

    def test_too_few_for_a_third_still_send_one_to_the_end(self) -> None:
        space = {"model.encoder": {"grid": ENCODERS[:2]}}
        search = play(make_job(space=space))
        assert sorted(trial.epochs for trial in search.trials) == [1, 12]

    def test_waits_for_one_that_may_still_come_to_a_rung(self) -> None:
        space = {"model.encoder": {"grid": ENCODERS[:2]}}
        search = Search(make_job(space=space), [], 1)
        first, second = search.next(), search.next()
        assert first
        assert second
        search.end(first.trial.number, TrialUpdate(scores=(0.5,)))
        assert search.next() is None
        assert search.running == 1
        search.end(second.trial.number, TrialUpdate(scores=(0.4,)))
        move = search.next()
        assert move is not None
        assert move.trial.number == first.trial.number

    def test_trials_that_fail_or_are_refused_are_passed_over(self) -> None:
        space = {"model.encoder": {"grid": ENCODERS[:4]}}
        search, states = Search(make_job(space=space), [], 1), ["failed", "refused"]
        while move := search.next():
            bad = {"state": states.pop(), "reason": "why"} if states else landed(move.trial, move.stop_after_epoch)
            search.end(move.trial.number, TrialUpdate.model_validate(bad))
        assert sorted(trial.state for trial in search.trials) == ["done", "failed", "paused", "refused"]

    def test_full_grid_without_asha(self) -> None:
        search = play(make_job(stop="none"))
        assert {(trial.state, trial.epochs) for trial in search.trials} == {("done", 12)}


class TestGoingOn:
    @pytest.mark.parametrize("cut_after", range(1, 22))
    def test_ends_with_the_same_trials(self, cut_after: int) -> None:
        whole, cut = play(make_job(), concurrent=1), play(make_job(), concurrent=1, cut_after=cut_after)
        assert cut.trials == whole.trials

    def test_a_trial_that_was_cut_goes_on_first_and_to_its_rung(self) -> None:
        search = Search(make_job(), [], 1)
        move = search.next()
        assert move is not None
        search.update(move.trial.number, TrialUpdate(scores=tuple(scores(move.trial, 2))))
        again = Search(make_job(), search.trials, 1).next()
        assert again is not None
        assert (again.trial.name, again.stop_after_epoch) == (move.trial.name, 4)

    def test_a_trial_that_was_cut_at_full_length_is_called_up_again_for_its_model(self) -> None:
        search = Search(make_job(stop="none"), [], 1)
        move = search.next()
        assert move is not None
        search.update(move.trial.number, TrialUpdate(scores=tuple(scores(move.trial, 12))))
        again = Search(make_job(stop="none"), search.trials, 1).next()
        assert again is not None
        assert (again.trial.name, again.stop_after_epoch) == (move.trial.name, 12)

    def test_a_trial_that_left_off_at_full_length_without_its_model_is_called_up_again(self) -> None:
        search = Search(make_job(stop="none"), [], 1)
        move = search.next()
        assert move is not None
        search.update(move.trial.number, TrialUpdate(scores=tuple(scores(move.trial, 12))))
        assert search.end(move.trial.number, TrialUpdate()).state == "planned"
        again = search.next()
        assert again is not None
        assert (again.trial.name, again.stop_after_epoch) == (move.trial.name, 12)

    def test_a_trial_that_was_stopped_between_rungs_goes_on(self) -> None:
        search = Search(make_job(), [], 1)
        move = search.next()
        assert move is not None
        assert search.end(move.trial.number, TrialUpdate()).state == "planned"
        again = search.next()
        assert again is not None
        assert again.trial.name == move.trial.name


class TestFinalists:
    def test_the_best_with_seeds_that_are_not_theirs(self) -> None:
        job = make_job(finalists=2, seeds=3)
        search = play(job)
        best = rank_trials(search.trials)[:2]
        final = Search(job, search.trials, 2)
        moves = []
        while move := final.next():
            moves.append(move)
        assert [(move.trial.description, move.trial.seed) for move in moves] == [
            (best[0].description, 1),
            (best[1].description, 1),
            (best[0].description, 2),
            (best[1].description, 2),
            (best[0].description, 3),
            (best[1].description, 3),
        ]
        assert {move.stop_after_epoch for move in moves} == {12}
        assert not Search(job, final.trials, 1).has_moves()

    def test_none_is_added_twice(self) -> None:
        job = make_job(finalists=2, seeds=3)
        final = Search(job, play(job).trials, 2)
        assert len(Search(job, final.trials, 2).trials) == len(final.trials) == 16 + 6


class TestDraws:
    def test_a_grid_has_each_combination_once_in_an_order_that_follows_from_the_seed(self) -> None:
        job = make_job()
        assert count(job) == 16
        trials = play(job, concurrent=1).trials
        assert len({trial.description for trial in trials}) == 16
        assert [trial.description for trial in trials] == [
            trial.description for trial in play(job, concurrent=1).trials
        ]
        other = play(make_job(seed=1), concurrent=1).trials
        assert [trial.description for trial in trials] != [trial.description for trial in other]

    def test_random_draws_for_each_combination_of_the_grids(self) -> None:
        space = {"model.architecture": {"grid": ["Unet", "FPN"]}, "optim.lr": {"log_uniform": [1e-4, 1e-2]}}
        job = make_job(space=space, search="random", samples=50)
        assert count(job) == 100
        trials: list[Trial] = []
        for number in range(100):
            trials.append(Trial(number=number + 1, name=f"t{number}", stage=1, params=draw(job, trials), seed=0))
        rates = np.array([trial.params["optim.lr"] for trial in trials])
        assert len(set(rates)) == 100
        assert rates.min() > 1e-4
        assert rates.max() < 1e-2
        # Evenly on a logarithmic scale: half of them lie below the geometric mean of the bounds.
        assert 35 < (rates < 1e-3).sum() < 65
        assert sum(trial.params["model.architecture"] == "FPN" for trial in trials) == 50

    @pytest.mark.parametrize("search", ["random", "tpe"])
    def test_no_values_come_twice_and_a_finite_space_has_an_end(self, search: str) -> None:
        space = {"model.encoder": {"choice": ENCODERS}, "model.architecture": {"choice": ["Unet", "FPN"]}}
        job = make_job(space=space, search=search, samples=24, stop="none")
        assert count(job) == 16
        trials = play(job, concurrent=3).trials
        assert len({trial.params_key for trial in trials}) == len(trials) == 16

    def test_tpe_comes_closer_to_the_best(self) -> None:
        space = {"optim.lr": {"log_uniform": [1e-6, 1e-1]}, "model.architecture": {"choice": ["Unet", "FPN"]}}
        first, last = [], []
        for seed in range(4):
            job = make_job(space=space, search="tpe", samples=40, stop="none", epochs=1, seed=seed)
            search = Search(job, [], 1)
            distances = []
            while move := search.next():
                distance = abs(np.log10(move.trial.params["optim.lr"]) + 3)
                penalty = 0.0 if move.trial.params["model.architecture"] == "FPN" else 0.2
                search.end(move.trial.number, TrialUpdate(scores=(0.9 - 0.1 * distance - penalty,), state="done"))
                distances.append(distance)
            first += distances[:8]
            last += distances[-10:]
        # In decades from the best rate; draws at random are 1.3 away on average.
        assert np.mean(last) < 0.75 * np.mean(first)

    def test_tpe_goes_on_with_the_same_draws(self) -> None:
        job = make_job(space={"optim.lr": {"uniform": [0.1, 0.9]}}, search="tpe", samples=20)
        whole, cut = play(job, concurrent=1), play(job, concurrent=1, cut_after=11)
        assert cut.trials == whole.trials


class TestEpochsToCome:
    def test_counts_down_to_nothing(self) -> None:
        job = make_job()
        assert epochs_to_come(job, [], 1) == 16 + 5 * 3 + 1 * 8
        assert epochs_to_come(job, play(job, concurrent=1).trials, 1) == 0
