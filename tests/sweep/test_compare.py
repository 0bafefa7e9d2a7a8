import pytest

from lungseg_ray.config import SweepJob
from lungseg_ray.sweep.compare import finalists, pairs, spread, summarise_sweep
from lungseg_ray.sweep.ledger import State, Trial

JOB = SweepJob.model_validate(
    {
        "train": {"epochs": 4},
        "sweep": {
            "space": {
                "model.encoder": {"grid": ["vgg11", "vgg13", "vgg16", "vgg19", "resnet18"]},
                "model.architecture": {"grid": ["Unet", "UnetPlusPlus"]},
            }
        },
    }
)


def trial(
    number: int,
    encoder: str,
    architecture: str,
    scores: list[float],
    *,
    stage: int = 1,
    seed: int = 0,
    state: State = "done",
) -> Trial:
    params = {"model.encoder": encoder, "model.architecture": architecture}
    return Trial.model_validate(
        {"number": number, "name": str(number), "stage": stage, "seed": seed, "state": state}
        | {"params": params, "scores": scores, "seconds": 10.0 * len(scores)}
    )


class TestSpread:
    def test_worked_out_by_hand(self) -> None:
        # Mean 2, deviations -1, 0, 1: sd 1; t for 95 % with 2 degrees of freedom is 4.3027; 4.3027 / sqrt(3) = 2.4841.
        found = spread([1.0, 2.0, 3.0])
        assert found == pytest.approx({"n": 3, "mean": 2.0, "sd": 1.0, "low": -0.4841, "high": 4.4841}, abs=1e-4)

    def test_one_has_no_spread(self) -> None:
        assert spread([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}
        assert spread([])["n"] == 0


class TestPairs:
    def test_trials_that_differ_in_one_setting_after_as_many_epochs(self) -> None:
        trials = [
            trial(1, "vgg11", "Unet", [0.5, 0.6, 0.7, 0.8]),
            trial(2, "vgg11", "UnetPlusPlus", [0.6, 0.75], state="paused"),
            trial(3, "vgg13", "Unet", [0.3], state="paused"),
            trial(4, "vgg13", "UnetPlusPlus", [0.35, 0.5], state="paused"),
            trial(5, "vgg16", "Unet", [0.3], state="paused"),
            trial(6, "vgg19", "Unet", [0.9], state="failed"),
            trial(7, "vgg19", "UnetPlusPlus", [0.9], state="paused"),
        ]
        # Encoders are five, too many to be compared value by value.
        (found,) = pairs(JOB, trials)
        assert (found["setting"], found["of"], found["over"]) == ("model.architecture", "UnetPlusPlus", "Unet")
        # vgg11 after 2 epochs: 0.75 - 0.6; vgg13 after 1: 0.35 - 0.3. vgg16 has no partner, and that of vgg19 failed.
        assert found["pairs"] == [
            {"label": "vgg11", "epochs": 2, "of": 0.75, "over": 0.6},
            {"label": "vgg13", "epochs": 1, "of": 0.35, "over": 0.3},
        ]
        assert (found["n"], found["wins"]) == (2, 2)
        assert found["mean"] == pytest.approx(0.1)
        assert found["sd"] == pytest.approx(0.0707107, abs=1e-6)


class TestFinalists:
    def test_differences_are_paired_by_seed(self) -> None:
        trials = [
            trial(1, "vgg11", "Unet", [0.1, 0.1, 0.1, 0.80], stage=2, seed=1),
            trial(2, "vgg13", "Unet", [0.1, 0.1, 0.1, 0.78], stage=2, seed=1),
            trial(3, "vgg11", "Unet", [0.1, 0.1, 0.1, 0.84], stage=2, seed=2),
            trial(4, "vgg13", "Unet", [0.1, 0.1, 0.1, 0.80], stage=2, seed=2),
            trial(5, "vgg11", "Unet", [0.1, 0.1, 0.1, 0.90], stage=2, seed=3),
            trial(6, "vgg13", "Unet", [0.1, 0.1], stage=2, seed=3, state="planned"),
        ]
        first, second = finalists(trials)
        assert (first["label"], first["seeds"], first["behind"]) == ("vgg11, Unet", [1, 2, 3], None)
        assert first["mean"] == pytest.approx((0.80 + 0.84 + 0.90) / 3)
        assert second["seeds"] == [1, 2]
        # 0.80 - 0.78 and 0.84 - 0.80; the third seed of vgg13 is not done.
        assert second["behind"] is not None
        assert second["behind"]["n"] == 2
        assert second["behind"]["mean"] == pytest.approx(0.03)


class TestSummarise:
    def test_before_any_score(self) -> None:
        found = summarise_sweep(JOB, [trial(1, "vgg11", "Unet", [], state="running")], {})
        assert found["winner"] is None
        assert found["ranking"] == []

    def test_the_winner_is_the_search_s_until_there_are_finalists(self) -> None:
        search = [
            trial(1, "vgg11", "Unet", [0.5, 0.6, 0.7, 0.8]),
            trial(2, "vgg13", "Unet", [0.9], state="paused"),
            trial(3, "vgg16", "Unet", [], state="refused"),
        ]
        found = summarise_sweep(JOB, search, {"stage 1": 60.0})
        # Of ten combinations of four epochs one is refused. The other's score after one epoch does not compare.
        assert found["ranking"] == [1, 2]
        assert found["winner"] is not None
        assert found["winner"]["label"] == "vgg11, Unet"
        assert found["winner"]["by"] == "search"
        assert found["states"] == {"done": 1, "paused": 1, "refused": 1}
        assert found["spent"] == {
            "epochs_search": 5,
            "epochs_full_search": 36,
            "epochs_finalists": 0,
            "seconds": {"stage 1": 60.0},
            "trial_seconds": 50.0,
        }
        final = [trial(4, "vgg13", "Unet", [0.1, 0.1, 0.1, 0.7], stage=2, seed=1)]
        assert summarise_sweep(JOB, [*search, *final], {})["winner"] == {
            "params": final[0].params,
            "label": "vgg13, Unet",
            "by": "finalists",
        }
