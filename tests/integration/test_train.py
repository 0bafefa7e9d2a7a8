"""One run of the main job on two workers, and what can be done with it afterwards."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
from rich.console import Console

from lungseg_ray.config import EvaluateJob, PredictJob, Settings
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.evaluate import evaluate_run
from lungseg_ray.jobs.predict import Prediction, predict
from lungseg_ray.jobs.train import train
from lungseg_ray.run.checkpoint import list_checkpoints
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.describe import Outcome
from lungseg_ray.storage import locate
from tests.corpus.dicoms import chest
from tests.helpers import find_damage
from tests.integration.conftest import settings_for


@dataclass
class Finished:
    settings: Settings
    folder: Path
    summary: Any
    output: str


def go(settings: Settings) -> tuple[Any, str]:
    console = Console(file=io.StringIO(), width=200)
    summary = train(settings, console, started=0.0)
    return summary, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(sharded: Outcome, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    runs = tmp_path_factory.mktemp("runs")
    settings = settings_for(
        corpus,
        Path(sharded.root.path),
        train={"workers": 2, "epochs": 3, "average": 0.5},
        runs={"root": str(runs), "name": "two"},
    )
    summary, output = go(settings)
    return Finished(settings, runs / "two", summary, output)


def rows(place: Path) -> list[dict[str, str]]:
    with place.open() as lines:
        return list(csv.DictReader(lines))


class TestRun:
    def test_the_folder_holds_what_a_run_is(self, finished: Finished) -> None:
        there = {path.name for path in finished.folder.iterdir()}
        expected = {
            "config.yaml",
            "environment.json",
            "history.csv",
            "summary.json",
            "curves.png",
            "best",
            "evaluation",
        }
        assert expected | {"tensorboard"} <= there
        assert {path.name for path in (finished.folder / "best").iterdir()} == {
            *("README.md", "config.json", "confidence.json", "model.safetensors", "preprocessing.json")
        }
        assert list((finished.folder / "tensorboard").glob("events.out.tfevents.*"))
        kept = list_checkpoints(locate(str(finished.folder)))
        assert 1 <= len(kept) <= finished.settings.checkpoint.keep + 1
        assert [find_damage(place) for place in kept] == [None] * len(kept)

    def test_every_validation_image_counted_once_on_two_workers(self, finished: Finished, sharded: Outcome) -> None:
        history = rows(finished.folder / "history.csv")
        assert [float(row["val_n"]) for row in history] == [sharded.index.count("val")] * 3

    def test_the_summary_says_what_was_found(self, finished: Finished, sharded: Outcome) -> None:
        summary = finished.summary
        assert summary == json.loads((finished.folder / "summary.json").read_text())
        assert set(summary) == {
            *("epochs", "best_epoch", "val", "test", "images_per_second", "data_wait_share", "checkpoint_wait_share"),
            *("skipped", "seconds", "matrix_rate_share"),
        }
        assert 0 < summary["matrix_rate_share"] < 1
        history = rows(finished.folder / "history.csv")
        best = min(history, key=lambda row: float(row["val_loss"]))
        assert summary["epochs"] == 3
        assert summary["best_epoch"] == int(best["epoch"])
        assert summary["val"]["dice"] == pytest.approx(float(best["val_dice"]), abs=1e-12)
        assert summary["test"]["n"] == sharded.index.count("test")
        assert set(summary["test"]["groups"]["finding"]) == {"odd", "even"}

    def test_it_tells_a_line_for_each_epoch_and_where_the_pictures_are(self, finished: Finished) -> None:
        assert all(f"epoch   {epoch}/3  loss" in finished.output for epoch in (1, 2, 3))
        assert str(finished.folder / "evaluation/test/contact_sheet.png") in finished.output
        for picture in ("curves.png", "evaluation/test/contact_sheet.png"):
            assert cv2.imread(str(finished.folder / picture)) is not None

    def test_the_best_model_opens_in_the_library_it_came_from(self, finished: Finished) -> None:
        model = smp.from_pretrained(str(finished.folder / "best"))
        assert type(model) is smp.Unet

    def test_the_same_command_says_that_it_is_finished(self, finished: Finished) -> None:
        summary, output = go(finished.settings)
        assert summary == finished.summary
        assert "is finished" in output

    def test_it_may_be_trained_longer(self, finished: Finished, tmp_path: Path) -> None:
        shutil.copytree(finished.folder, tmp_path / "two")
        tree = finished.settings.model_dump()
        longer = {**tree["train"], "epochs": 4, "workers": 1}
        shorter = {**tree["evaluate"], "robustness": 0, "confidence": False, "resamples": 20}
        change = {"train": longer, "evaluate": shorter, "runs": {**tree["runs"], "root": str(tmp_path)}}
        summary, output = go(Settings.model_validate({**tree, **change}))
        assert "Training for 4 epochs in place of 3." in output
        assert summary["epochs"] == 4
        before, after = rows(finished.folder / "history.csv"), rows(tmp_path / "two/history.csv")
        assert after[:3] == before
        assert len(after) == 4
        assert "extended" in [event["event"] for event in Run(locate(str(tmp_path / "two"))).events.read()]

    @pytest.mark.parametrize(
        ("section", "changed", "said"),
        [("train", {"seed": 7}, "train.seed: 0 -> 7"), ("optim", {"lr": 0.5}, "optim.lr: 0.003 -> 0.5")],
    )
    def test_a_changed_setting_under_the_same_name_is_refused(
        self, finished: Finished, section: str, changed: dict[str, Any], said: str
    ) -> None:
        tree = finished.settings.model_dump()
        other = Settings.model_validate({**tree, section: {**tree[section], **changed}})
        with pytest.raises(UserError, match=said):
            go(other)


class TestEvaluate:
    def test_workers_and_the_way_in_change_no_figure(self, finished: Finished, tmp_path: Path) -> None:
        jobs: list[dict[str, Any]] = [
            {"evaluate": {"workers": 1, "resamples": 50, "robustness": 2}},
            {"evaluate": {"workers": 3, "resamples": 50, "robustness": 2}},
            {
                "evaluate": {"resamples": 50, "robustness": 2},
                "split": "test",
                "corpus": {"root": finished.settings.corpus.root},
            },
        ]
        results = []
        for number, job in enumerate(jobs):
            whole = {"run": str(finished.folder), "out": str(tmp_path / str(number)), **job}
            results.append(evaluate_run(EvaluateJob.model_validate(whole))[0])
        assert results[2].pop("corpus").endswith("/pairs")
        assert (results[2].pop("layout"), results[2].pop("unlabelled")) == ("pairs (found images/ and masks/)", 0)
        assert results[0] == results[1] == results[2] == finished.summary["test"]
        assert rows(tmp_path / "0/per_image.csv") == rows(tmp_path / "1/per_image.csv")

    def test_another_corpus_is_read_as_it_is_and_its_bad_files_are_named(
        self, finished: Finished, tmp_path: Path
    ) -> None:
        root = tmp_path / "other"
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        for number in range(3):
            cv2.imwrite(str(root / f"images/{number}.png"), np.full((40, 60), 90 + number, np.uint8))
            cv2.imwrite(str(root / f"masks/{number}.png"), np.tile(np.array([0, 255], np.uint8), (40, 30)))
        (root / "images/1.png").write_bytes(b"no image")
        job = {"run": str(finished.folder), "corpus": {"root": str(root)}, "out": str(tmp_path / "out")}
        result, _ = evaluate_run(EvaluateJob.model_validate(job))
        assert result["n"] == 2
        assert [one["reason"] for one in result["set_aside"]] == ["unreadable"]

    def test_the_expected_dice_is_compared_with_the_true_one(self, finished: Finished) -> None:
        per_image = rows(finished.folder / "evaluation/test/per_image.csv")
        expected = [float(row["expected_dice"]) for row in per_image]
        assert all(
            0 <= float(row["expected_low"]) <= dice <= float(row["expected_high"]) <= 1
            for row, dice in zip(per_image, expected, strict=True)
        )
        judged = finished.summary["test"]["confidence"]
        true = [float(row["dice"]) for row in per_image]
        assert judged["mean_error"] == pytest.approx(np.abs(np.subtract(expected, true)).mean())
        assert judged["unlike"] == np.mean([float(row["unlike"]) for row in per_image])
        assert judged["below_90"] == sum(dice < 0.9 for dice in true)

    def test_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no run here"):
            evaluate_run(EvaluateJob(run=str(tmp_path)))


def outcomes(job: PredictJob) -> list[Prediction]:
    found: list[Prediction] = []
    predict(job, watch=found.append)
    return found


class TestPredict:
    def test_masks_at_the_size_of_their_images_and_going_on(
        self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = tmp_path / "images"
        (images / "more").mkdir(parents=True)
        generator = np.random.default_rng(0)
        cv2.imwrite(str(images / "a.png"), generator.integers(0, 255, (70, 90), np.uint8))
        cv2.imwrite(str(images / "more/b.jpg"), generator.integers(0, 255, (50, 40, 3), np.uint8))
        (images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        job = PredictJob(run=str(finished.folder), images=str(images), out=str(tmp_path / "out"), overlay=True)
        found = {one.image: one for one in outcomes(job)}
        assert [row["image"] for row in rows(tmp_path / "out/predictions.csv")] == list(found) == sorted(found)
        assert {name: one.status for name, one in found.items()} == {
            "a.png": "done",
            "bad.png": "set aside",
            "more/b.jpg": "done",
        }
        assert found["bad.png"].reason.startswith("unreadable: ")
        mask: Any = cv2.imread(str(tmp_path / "out/masks/a.png.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (70, 90)
        assert set(np.unique(mask)) <= {0, 255}
        # Noise is unlike the images that the model was trained on.
        table = {row["image"]: row for row in rows(tmp_path / "out/predictions.csv")}
        estimate = found["a.png"].estimate
        assert estimate
        assert estimate.unlike
        assert float(table["a.png"]["expected_dice"]) == estimate.dice
        assert table["a.png"]["doubt"] == estimate.reason != ""
        assert table["bad.png"]["expected_dice"] == ""
        assert found["a.png"].shares["lung"] == pytest.approx(float((mask > 0).mean()), abs=1e-6)
        overlay: Any = cv2.imread(str(tmp_path / "out/overlays/more/b.jpg.png"))
        assert overlay.shape == (50, 40, 3)
        again = {one.image: one for one in outcomes(job)}
        assert again["a.png"] == replace(found["a.png"], status="done before")
        assert [row["image"] for row in rows(tmp_path / "out/predictions.csv")] == sorted(found)

    def test_another_model_does_not_mix_with_the_first(self, finished: Finished, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((40, 40), np.uint8))
        tree = {"run": str(finished.folder), "images": str(tmp_path / "images"), "out": str(tmp_path / "out")}
        predict(PredictJob.model_validate(tree))
        with pytest.raises(UserError, match="clean_up: False -> True"):
            predict(PredictJob.model_validate({**tree, "clean_up": True}))

    def test_masks_that_do_not_say_how_good_they_are_are_made_again(self, finished: Finished, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((40, 40), np.uint8))
        tree = {"run": str(finished.folder), "images": str(tmp_path / "images"), "out": str(tmp_path / "out")}
        without, with_ = (PredictJob.model_validate({**tree, "confidence": wanted}) for wanted in (False, True))
        assert [(one.status, one.estimate) for one in outcomes(without)] == [("done", None)]
        assert "expected_dice" not in rows(tmp_path / "out/predictions.csv")[0]
        assert [one.status for one in outcomes(with_)] == ["done anew"]
        (again,) = outcomes(with_)
        assert again.status == "done before"
        assert again.estimate
        assert [one.status for one in outcomes(without)] == ["done before"]

    def test_another_image_of_the_same_name(self, finished: Finished, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            cv2.imwrite(str(tmp_path / folder / "a.png"), generator.integers(0, 255, (70, 90), np.uint8))
        tree = {"run": str(finished.folder), "images": str(tmp_path / "one"), "out": str(tmp_path / "out")}
        job = PredictJob.model_validate(tree)
        assert [one.status for one in outcomes(job)] == ["done"]
        with pytest.raises(UserError, match=r"images: .*/one -> .*/two"):
            predict(PredictJob.model_validate({**tree, "images": str(tmp_path / "two")}))
        (tmp_path / "two/a.png").replace(tmp_path / "one/a.png")
        assert [one.status for one in outcomes(job)] == ["done anew"]
        assert [one.status for one in outcomes(job)] == ["done before"]
        alone = outcomes(PredictJob.model_validate({**tree, "out": str(tmp_path / "alone")}))
        assert [one.status for one in alone] == ["done"]
        assert (tmp_path / "alone/masks/a.png.png").read_bytes() == (tmp_path / "out/masks/a.png.png").read_bytes()

    def test_names_that_masks_cannot_have(self, finished: Finished, tmp_path: Path) -> None:
        images, long = tmp_path / "images", f"{'x' * 248}.png"
        (images / "a.png").mkdir(parents=True)
        content = cv2.imencode(".png", np.zeros((40, 40), np.uint8))[1].tobytes()
        for name in ("a", "a.png/b.png", long, f"{'y' * 244}.png"):
            (images / name).write_bytes(content)
        (images / "a").write_bytes(chest(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)))
        job = PredictJob(run=str(finished.folder), images=str(images), out=str(tmp_path / "out"))
        found = {one.image: one for one in outcomes(job)}
        assert found[long].reason == "bad_name: its mask cannot have this name (File name too long); rename the image"
        assert {found["a"].status, found["a.png/b.png"].status} == {"done", "set aside"}
        assert found[f"{'y' * 244}.png"].status == "done"

    def test_no_images(self, finished: Finished, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no images there"):
            predict(PredictJob(run=str(finished.folder), images=str(tmp_path), out=str(tmp_path / "out")))


def test_a_cluster_too_small_is_refused_with_a_sentence(
    cluster: None, sharded: Outcome, corpus: Path, tmp_path: Path
) -> None:
    settings = settings_for(
        corpus, Path(sharded.root.path), train={"workers": 4}, runs={"root": str(tmp_path), "name": "wide"}
    )
    with pytest.raises(UserError, match="leaves none for reading data"):
        go(settings)
    assert Run(locate(str(tmp_path / "wide"))).summary() is None
