from typing import Any

import pytest
from pydantic import ValidationError

from lungseg_ray.config import SweepJob


def make(space: dict[str, Any], **sweep: Any) -> SweepJob:
    return SweepJob.model_validate({"train": {"epochs": 40, "early_stop": 3}, "sweep": {"space": space, **sweep}})


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"optim.x": {"grid": [1]}}, "there is no setting 'optim.x'"),
        ({"train.seed": {"grid": [1, 2]}}, "train.seed must be the same for all trials"),
        ({"train.workers": {"grid": [1, 2]}}, "train.workers must be the same for all trials"),
        ({"feed.batch": {"grid": [8, 6]}, "train.accumulate": {"grid": [1, 4]}}, "feed.batch must divide"),
        ({"corpus.root": {"grid": ["a"]}}, "corpus.root must be the same for all trials"),
        ({"optim.lr": {"log_uniform": [1e-4, 1e-2]}}, "optim.lr has no end of values"),
        ({"optim.lr": {"grid": [1e-3], "choice": [1e-2]}}, "expected one of grid, choice, uniform and log_uniform"),
        ({"optim.lr": {}}, "expected one of grid"),
        ({"optim.lr": {"uniform": [0.2, 0.1]}}, "expected a lowest and a higher value"),
        ({"optim.lr": {"grid": [-1.0]}}, "greater than 0"),
        ({"model.encoder": {"choice": ["vgg11", "vgg13", "vgg11"]}}, 'expected each value once, found "vgg11" more'),
        ({"corpora": {"grid": [[]]}}, "corpora must be the same for all trials"),
        ({"feed.batch": {"grid": ["many"]}}, "valid integer"),
        ({"optim.lr": {"grid": [1e-3], "also": ["optim.encoder_rate"]}}, "there is no setting 'optim.encoder_rate'"),
        (
            {"optim.lr": {"grid": [1e-3], "also": ["optim.encoder_lr"]}, "optim.encoder_lr": {"grid": [1e-3]}},
            "optim.encoder_lr is searched twice",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make(space)


def test_draws_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        make({"feed.batch": {"uniform": [4, 16]}}, search="random")


def test_a_trial_takes_its_values_and_the_length_of_all() -> None:
    job = make(
        {
            "optim.lr": {"log_uniform": [1e-4, 1e-2], "also": ["optim.encoder_lr"]},
            "model.encoder": {"choice": ["vgg11"]},
        },
        search="random",
        epochs=9,
    )
    settings = job.trial({"optim.lr": 2e-3, "model.encoder": "vgg11"}, seed=5)
    assert (settings.optim.lr, settings.optim.encoder_lr, settings.model.encoder) == (2e-3, 2e-3, "vgg11")
    assert (settings.train.seed, settings.train.epochs, settings.train.early_stop) == (5, 9, 0)
    assert settings.feed == job.feed


def test_without_a_length_of_their_own_trials_are_as_long_as_a_run() -> None:
    assert make({"optim.lr": {"grid": [1e-3]}}).epochs == 40
