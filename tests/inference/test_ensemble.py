"""Several trained models, and mirror images, as one: opened, evaluated on shards, predicted with."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from lungseg_ray.config import EvaluateJob, PredictJob, SweepJob
from lungseg_ray.errors import UserError
from lungseg_ray.inference import predictor
from lungseg_ray.inference.predictor import Model
from lungseg_ray.jobs.evaluate import cross, evaluate_run
from lungseg_ray.jobs.members import model_of
from lungseg_ray.jobs.predict import predict
from lungseg_ray.names import Flips
from lungseg_ray.run.exported import SIDECAR
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.storage import Location, locate
from lungseg_ray.sweep.ledger import Sweep, Trial
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings, write_shards
from tests.inference.helpers import save_small_model


def save(place: Location, *, seed: int, size: int) -> Location:
    """A small network with fresh BatchNorm statistics, as a run leaves it; of noise about half is positive."""
    torch.manual_seed(seed)
    model: Any = build_model(make_settings())
    images = torch.rand(4, 1, size, size)
    with torch.no_grad():
        model.train()(images)
        model.segmentation_head[0].bias -= model.eval()(images).mean()
    save_small_model(place, model, size=size)
    return place


@dataclass
class Swept:
    folder: Path
    sweep: Sweep
    runs: list[Run]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep of three trials; its best is the third, then the first; the second was never brought to its end."""
    folder = tmp_path_factory.mktemp("swept")
    shards = locate(str(folder / "shards"))
    index = write_shards(shards, rows={"train": [1], "val": [1], "test": [3, 2]}, skip={})
    settings = make_settings(
        corpus={"root": "somewhere"}, shards={"root": shards.uri}, evaluate={"resamples": 20, "robustness": 0}
    )
    sweep = Sweep(locate(str(folder / "sweep")))
    sweep.config.write(SweepJob.model_validate(settings.model_dump()), fingerprint=index.fingerprint)
    done: list[dict[str, Any]] = [
        {"state": "done", "scores": (0.5, 0.7)},
        {"state": "paused", "scores": (0.9,)},
        {"state": "done", "scores": (0.6, 0.8)},
    ]
    trials = [
        Trial(number=number, name=f"t{number}", stage=1, params={}, seed=number, **facts)
        for number, facts in enumerate(done, start=1)
    ]
    sweep.write_trials(trials, {})
    runs = [sweep.run(trial) for trial in trials]
    for trial, run in zip(trials, runs, strict=True):
        run.start(settings, fingerprint=index.fingerprint)
        if trial.state == "done":
            save(run.place / BEST, seed=trial.seed, size=32 * trial.number)
    return Swept(folder, sweep, runs)


def noise(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8)


class TestLoad:
    @pytest.fixture(scope="class")
    def places(self, tmp_path_factory: pytest.TempPathFactory) -> list[Location]:
        """Two models, whose inputs are 32 and 64 pixels wide."""
        folder = locate(str(tmp_path_factory.mktemp("best")))
        return [save(folder / f"{size}", seed=size, size=size) for size in (32, 64)]

    def test_the_mean_of_two(self, places: list[Location]) -> None:
        first, second = (predictor.load_predictor(place)([noise(50, 70)])[0] for place in places)
        assert np.abs(first - second).max() > 0.01
        use = predictor.load_predictor(*places)
        np.testing.assert_allclose(use([noise(50, 70)])[0], (first + second) / 2, atol=1e-6)
        assert predictor.load_predictor(*places) is use

    def test_the_mean_of_an_image_and_its_mirror_image(self, places: list[Location]) -> None:
        plain = predictor.load_predictor(places[0])
        straight, mirrored = plain([noise(64, 64)])[0], plain([np.flip(noise(64, 64), 1)])[0]
        assert np.abs(straight - np.flip(mirrored, 1)).max() > 1e-3
        found = predictor.load_predictor(places[0], flips="horizontal")([noise(64, 64)])[0]
        np.testing.assert_allclose(found, (straight + np.flip(mirrored, 1)) / 2, atol=1e-6)

    @pytest.mark.parametrize(("flips", "axes"), [("horizontal", (1,)), ("all", (1,)), ("all", (0,)), ("all", (0, 1))])
    def test_a_mirrored_image_has_the_mirrored_result(
        self, flips: Flips, axes: tuple[int, ...], places: list[Location]
    ) -> None:
        use = predictor.load_predictor(places[0], flips=flips)
        straight, mirrored = use([noise(64, 64)])[0], use([np.flip(noise(64, 64), axes)])[0]
        np.testing.assert_allclose(mirrored, np.flip(straight, axes), atol=1e-6)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"longer_side": 512}, "longer_side: 1024 -> 512"),
            ({"class_names": ["heart"]}, r"class_names: \['lung'\] -> \['heart'\]"),
            ({"channels": 3, "classes": 4, "class_names": ["a", "b", "c"]}, "channels: 1 -> 3\n  classes: 1 -> 4"),
        ],
    )
    def test_models_that_do_not_agree_are_refused(
        self, changed: dict[str, Any], said: str, places: list[Location], tmp_path: Path
    ) -> None:
        other = locate(str(tmp_path / "other"))
        shutil.copytree(places[1].path, other.path)
        side = json.loads((other / SIDECAR).read_text())
        (other / SIDECAR).write_text(json.dumps(side | changed))
        with pytest.raises(UserError, match=said) as caught:
            predictor.load_predictor(places[0], other)
        assert str(caught.value).startswith(f"{other}: this model cannot be averaged with {places[0]}")


class TestModel:
    def test_of_a_sweep(self, swept: Swept) -> None:
        first, _, third = swept.runs
        job = {"run": str(swept.sweep.place)}
        assert model_of(EvaluateJob.model_validate(job)) == Model((third,))
        two = model_of(EvaluateJob.model_validate({**job, "top": 2, "flips": "all"}))
        assert two == Model((third, first), "all")
        with pytest.raises(UserError, match=r"2 trial\(s\) of stage 1 went to full length; 3 are asked for \(--top\)"):
            model_of(EvaluateJob.model_validate({**job, "top": 3}))

    def test_of_a_run(self, swept: Swept) -> None:
        job = {"run": str(swept.runs[0].place), "flips": "horizontal"}
        assert model_of(EvaluateJob.model_validate(job)) == Model((swept.runs[0],), "horizontal")
        with pytest.raises(UserError, match="--top 2 averages the best trials of a sweep, but no sweep lies there"):
            model_of(EvaluateJob.model_validate({**job, "top": 2}))

    def test_each_kind_has_a_folder_of_its_own(self, swept: Swept) -> None:
        one, two = tuple(swept.runs[:1]), tuple(swept.runs[:2])
        models = Model(one), Model(one, "horizontal"), Model(two), Model(two, "all")
        assert [model.suffix for model in models] == ["", "-flips-horizontal", "-top2", "-top2-flips-all"]


class TestEvaluate:
    def test_a_sweep_is_its_best_trial(self, swept: Swept, cluster: None) -> None:
        results = []
        for place in (swept.sweep.place, swept.runs[2].place):
            result, out = evaluate_run(
                EvaluateJob.model_validate({"run": str(place), "device": "cpu", "evaluate": {"robustness": 0}})
            )
            assert out == place / "evaluation/test"
            results.append(result)
        assert results[0] == results[1]
        assert (results[0]["members"], results[0]["flips"]) == ([str(swept.runs[2].place)], "none")

    def test_workers_change_no_figure_of_several(self, swept: Swept, cluster: None, tmp_path: Path) -> None:
        base = {"run": str(swept.sweep.place), "top": 2, "flips": "all", "device": "cpu"}
        results = []
        for workers, more in ((1, {}), (2, {"out": str(tmp_path / "out")})):
            job = {**base, **more, "evaluate": {"workers": workers, "batch": 2, "resamples": 20, "robustness": 0}}
            result, out = evaluate_run(EvaluateJob.model_validate(job))
            assert json.loads((out / "evaluation.json").read_text()) == result
            results.append((result, (out / "per_image.csv").read_text()))
        assert results[0] == results[1]
        assert (swept.sweep.place / "evaluation/test-top2-flips-all/contact_sheet.png").is_file()
        assert results[0][0]["members"] == [str(swept.runs[2].place), str(swept.runs[0].place)]
        assert (results[0][0]["flips"], results[0][0]["n"]) == ("all", 5)

    def test_several_runs_on_several_corpora(self, swept: Swept, cluster: None) -> None:
        first, _, third = swept.runs
        corpora = [{"root": "phantom", "phantom": {"count": 3, "size": 96}}]
        job = {"run": str(third.place), "others": [str(first.place)], "corpora": corpora, "device": "cpu"}
        console = Console(file=io.StringIO(), width=200)
        figures = {"resamples": 20, "robustness": 2, "clean_up": False}
        rows = cross(EvaluateJob.model_validate({**job, "evaluate": figures}), console)
        assert json.loads((third.place / "evaluation/corpora.json").read_text()) == rows
        assert [row["run"] for row in rows] == [str(third.place), str(first.place)]
        assert [one["n"] for one in rows[0]["corpora"].values()] == [5, 3]
        assert rows[0]["corpora"]["own test images"]["robustness"]["images"] == 2
        alone, _ = evaluate_run(EvaluateJob.model_validate({"run": str(first.place), "evaluate": figures}))
        assert rows[1]["corpora"]["own test images"] == alone
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert f"{alone['dice']['mean']:.4f} (" in text
        assert "phantom" in text
        # Networks with random weights mark everywhere, and phantoms have lungs: an excess outside of them.
        assert any("its masks contain less than the model has learned" in text for text in rows[0]["outlines"])
        with pytest.raises(ValueError, match="leave corpus, split, shards out"):
            EvaluateJob.model_validate({**job, "split": "val"})
        with pytest.raises(ValueError, match="name them with corpora"):
            EvaluateJob.model_validate({**job, "corpora": []})


class TestPredict:
    def test_masks_of_several_do_not_mix_with_those_of_one(self, swept: Swept, cluster: None, tmp_path: Path) -> None:
        pixels = noise(70, 90)
        (tmp_path / "images").mkdir()
        cv2.imwrite(str(tmp_path / "images/a.png"), pixels)
        tree = {"run": str(swept.sweep.place), "images": str(tmp_path / "images"), "out": str(tmp_path / "out")}
        tree |= {"device": "cpu"}
        predict(PredictJob.model_validate({**tree, "top": 2}))
        mask: Any = cv2.imread(str(tmp_path / "out/masks/a.png.png"), cv2.IMREAD_UNCHANGED)
        maps = [predictor.load_predictor(swept.runs[number].place / BEST)([pixels])[0] for number in (2, 0)]
        expected = (maps[0] + maps[1])[:, :, 0] / 2 > 0.5
        assert 0.1 < expected.mean() < 0.9
        assert ((mask > 0) != expected).sum() <= 2
        with pytest.raises(UserError, match="flips: none -> all"):
            predict(PredictJob.model_validate({**tree, "top": 2, "flips": "all"}))
        with pytest.raises(UserError, match=r"weights_sha256: \w+ \w+ -> \w+\n"):
            predict(PredictJob.model_validate(tree))
