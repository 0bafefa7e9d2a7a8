from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lungseg_ray.config import ReportJob, SweepJob, load_settings
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.report import report
from lungseg_ray.page import charts
from lungseg_ray.page.elements import decimals, interval
from lungseg_ray.page.render import write_run_page, write_sweep_page
from lungseg_ray.run.folder import BEST, EVALUATION, SHEET, Run
from lungseg_ray.storage import Location, locate
from lungseg_ray.sweep.ledger import State, Sweep, Trial
from lungseg_ray.sweep.summary import SweepSummary
from lungseg_ray.text import duration
from tests.helpers import ROOT, make_settings, write_shards
from tests.inference.helpers import save_small_model
from tests.storage.object_store import ObjectStore

SCRIPT = "<script>window.planted = 1</script>"
IMAGE = "<img src=x onerror='window.planted = 1'>"
ENCODERS = ["timm-regnety_002", "resnet18", IMAGE]
ARCHITECTURES = ["Unet", "UnetPlusPlus"]
RATES = [0.001, 0.004]
EPOCHS = 6
NOTHING: SweepSummary = {
    "winner": None,
    "ranking": [],
    "finalists": [],
    "pairs": [],
    "states": {},
    "spent": {
        "epochs_search": 0,
        "epochs_full_search": 0,
        "epochs_finalists": 0,
        "seconds": {},
        "trial_seconds": 0.0,
    },
}
TEST: Any = {
    "n": 26,
    "patients": 24,
    "dice": {"mean": 0.9512, "low": 0.9433, "high": 0.9587},
    "iou": {"mean": 0.9081, "low": 0.8931, "high": 0.9207},
    "hd95": {"mean": 12.34, "low": 9.1, "high": 16.2},
}


def make_job(place: Path, **sweep: Any) -> SweepJob:
    space = {
        "model.architecture": {"grid": ARCHITECTURES},
        "model.encoder": {"grid": ENCODERS},
        "optim.lr": {"grid": RATES, "also": ["optim.encoder_lr"]},
    }
    tree = make_settings().model_dump()
    tree["train"]["epochs"] = EPOCHS
    tree["shards"]["root"] = str(place / "shards")
    tree["runs"] = {"root": str(place), "name": "sweep"}
    return SweepJob.model_validate({**tree, "sweep": {"space": space, "finalists": 2, "seeds": 3, **sweep}})


def history(final: float, epochs: int) -> list[dict[str, float]]:
    """IoU rises to `final`, and the loss falls to 1 - `final`."""
    rows = []
    for epoch in range(1, epochs + 1):
        iou = final - 0.4 * 0.5**epoch
        figures = {"val_loss": 1 - iou, "val_iou": iou, "val_dice": 2 * iou / (1 + iou), "lr": 1e-3, "encoder_lr": 1e-4}
        rows.append({"epoch": epoch, "step": 10 * epoch, "loss": 1.1 - iou, **figures})
        rows[-1] |= {"images_per_second": 12.5, "seconds": 8.0, "train_seconds": 7.0}
    return rows


def make_trial(sweep: Sweep, number: int, state: State, final: float, epochs: int, **more: Any) -> Trial:
    """A trial as the driver leaves it, with its run's history."""
    rows = history(final, epochs)
    params = more["params"]
    trial = Trial(
        number=number,
        name=f"{number:04d}",
        state=state,
        scores=[row["val_iou"] for row in rows],
        val_loss=rows[-1]["val_loss"] if rows else None,
        val_dice=rows[-1]["val_dice"] if rows else None,
        best_epoch=epochs or None,
        parameters=(3_000_000 + 1_000_000 * ENCODERS.index(params["model.encoder"])) if rows else None,
        gflops=2.5 if rows else None,
        seconds=8.0 * epochs,
        startup=1.5 if rows else None,
        **{"stage": 1, "seed": 0, **more},
    )
    if rows:
        sweep.run(trial).write_history(rows)
    return trial


def make_sweep(folder: Path, *, finished: bool = True, place: Location | None = None) -> Sweep:
    """12 trials in every state and, if it is finished, two finalists with three seeds each."""
    sweep = Sweep(place or locate(str(folder / "sweep")))
    index = write_shards(locate(str(folder / "shards")), rows={"train": [4], "val": [3, 3]}, skip={"val-1": (1,)})
    job = make_job(folder)
    sweep.config.write(job, fingerprint=index.fingerprint)
    rng = random.Random(0)
    trials: list[Trial] = []
    for architecture in ARCHITECTURES:
        for encoder in ENCODERS:
            for rate in RATES:
                number = len(trials) + 1
                params = {"model.architecture": architecture, "model.encoder": encoder, "optim.lr": rate}
                good = 0.9 + 0.02 * (architecture == "UnetPlusPlus") - 0.01 * (rate > 0.002) + rng.uniform(0, 0.005)
                state: State = {3: "failed", 5: "refused"}.get(number, "done" if number % 3 else "paused")  # type: ignore[assignment]
                epochs = {"done": EPOCHS, "paused": 2, "failed": 1, "refused": 0}[state]
                reason = {"failed": SCRIPT, "refused": "12.0 M parameters, 10 allowed"}.get(state, "")
                trials.append(make_trial(sweep, number, state, good, epochs, params=params, reason=reason))
    sweep.run(trials[0]).write_environment()
    if finished:
        for params, good in ((trials[9].params, 0.925), (trials[7].params, 0.922)):
            for seed in (1, 2, 3):
                more = {"params": params, "seed": seed, "stage": 2}
                trial = make_trial(sweep, len(trials) + 1, "done", good + rng.uniform(0, 0.004), EPOCHS, **more)
                sweep.run(trial).write_summary({"test": TEST})
                trials.append(trial)
    sweep.write_trials(trials, {"stage 1": 400.0, "stage 2": 310.0})
    if finished:
        sweep.write_summary(NOTHING, job.trial(trials[9].params))
    return sweep


def make_run(folder: Path, *, epochs: int = EPOCHS, finished: bool = True) -> Run:
    run = Run(locate(str(folder / "a<b>run")))
    run.start(make_settings(), fingerprint="0" * 64)
    if epochs:
        run.write_history(history(0.9, epochs))
    if finished:
        run.write_summary({"test": TEST})
        sheet = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
        png = cv2.imencode(".png", sheet)[1].tobytes()
        (run.place / EVALUATION / "test" / SHEET).write_bytes(png)
    return run


def body(page: Location) -> str:
    """The page without styles and scripts."""
    return re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)


def flat(text: str) -> str:
    """The words of a page."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return make_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def written(sweep: Sweep) -> str:
    page = write_sweep_page(sweep.place)
    assert page == sweep.place / "report.html"
    return body(page)


class TestSweep:
    def test_chapters_in_order(self, written: str) -> None:
        assert re.findall(r"<h2>(.*?)</h2>", written) == [
            "Result",
            "Finalists",
            "Value against value",
            "All trials",
            "Training curves",
            "Quality and cost",
            "Learning rate",
            "What the models see",
            "Configuration",
        ]
        assert "not finished" not in written

    def test_headline(self, written: str) -> None:
        text = flat(written)
        assert "Winner UnetPlusPlus, resnet18, lr 0.004" in text
        assert re.search(r"Its validation IoU 0\.9\d{3} ± 0\.00\d\d mean and standard deviation of 3 seeds", text)
        # Of 12: paused 6, 9, 12; failed 3; refused 5; six of the finalists are done, too.
        assert "Trials 18" in text
        for words in ("13 done", "3 paused", "1 failed", "1 refused"):
            assert words in text
        # 7 done x 6 + 3 paused x 2 + 1 = 49, of 11 trials x 6 epochs.
        assert "Epochs of the search 49 of 66 (74 %)" in text
        assert "Time 11.8 min stage 1: 6.7 min, stage 2: 5.2 min" in text

    def test_finalists(self, written: str) -> None:
        text = flat(written)
        assert re.search(r"1, 2, 3 – the first", text)
        assert re.search(r"0\.00\d\d \(-?0\.0\d{3} to 0\.0\d{3}\) (behind|may be chance)", text)
        # Six runs were measured.
        assert text.count("0.9512 (0.9433 to 0.9587) 0.9081 (0.8931 to 0.9207) 12.3 (9.1 to 16.2)") == 6

    def test_pairs(self, written: str) -> None:
        text = flat(written)
        # Six pairs, but 3 and 5 have no score that counts: four are left, and the second is 0.02 better in each.
        assert (
            "UnetPlusPlus minus Unet UnetPlusPlus is better in 4 of 4 pairs that differ in model.architecture" in text
        )
        assert "does not contain zero: UnetPlusPlus is better here" in text
        assert "0.004 minus 0.001" in text
        assert "contains zero: these trials do not tell which is better" in text

    def test_a_row_for_each_trial(self, written: str) -> None:
        rows = re.findall(r"<tr>.*?</tr>", re.findall(r"<table class=\"sortable.*?</table>", written, re.DOTALL)[0])
        assert len(rows) == 1 + 18
        assert '<a href="trials/0003/">0003</a>' in rows[3]
        assert "&lt;script&gt;" in rows[3]
        assert "12.0 M parameters, 10 allowed" in rows[5]
        assert ">refused<" in rows[5]

    def test_foreign_text_is_text(self, sweep: Sweep, written: str) -> None:
        whole = (sweep.place / "report.html").read_text()
        assert SCRIPT not in whole
        assert IMAGE not in whole
        assert "&lt;script&gt;window.planted" in written

    def test_configuration(self, written: str) -> None:
        text = flat(written)
        assert "optim.lr grid 0.001, 0.004 optim.encoder_lr" in text
        shared = text[text.index("What all trials share") : text.index("Environment")]
        assert "weight_decay 0.0003" in shared
        assert not re.search(r"\b(lr|encoder_lr|architecture|encoder) ", shared)
        assert "segmentation-models-pytorch" in text[text.index("Environment, as 0001") :]

    def test_no_model_yet(self, written: str) -> None:
        assert "no trial has left its best model yet" in written


class TestPictures:
    @pytest.fixture(scope="class")
    def pictured(self, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
        sweep = make_sweep(tmp_path_factory.mktemp("pictured"))
        trials = {trial.number: trial for trial in sweep.trials()}
        # 13 to 15 are the winner's and have 4 M parameters; 16 to 18 have 3 M.
        save_small_model(sweep.run(trials[14]).place / BEST)
        save_small_model(sweep.run(trials[17]).place / BEST)
        return sweep

    def test_same_images_for_best_and_smallest(self, pictured: Sweep) -> None:
        page = body(write_sweep_page(pictured.place))
        # 5 validation images count; the first, the last and two between them are shown, three times.
        assert re.findall(r">(val-\d-\d)</figure>", page) == ["val-0-0", "val-0-1", "val-1-0", "val-1-2"]
        assert page.count('src="data:image/jpeg;base64,') == 12
        assert len(re.findall(r">Dice \d\.\d{3}</figure>", page)) == 8
        assert "best: trial 14, UnetPlusPlus, resnet18, lr 0.004, 4.0 M parameters" in page
        assert "smallest: trial 17, UnetPlusPlus, timm-regnety_002, lr 0.004, 3.0 M parameters" in page

    def test_shards_elsewhere(self, pictured: Sweep, tmp_path: Path) -> None:
        shards = Path(pictured.place.path).parent / "shards"
        moved = shards.rename(tmp_path / "moved")
        try:
            page = body(write_sweep_page(pictured.place, out=locate(str(tmp_path))))
            assert "There are no pictures" in page
            assert "--shards" in page
            assert "<h2>Configuration</h2>" in page
            # The page lies elsewhere, and so links with the whole path.
            assert f'href="{pictured.place}/trials/0001/"' in page
            page = body(write_sweep_page(pictured.place, shards=locate(str(moved)), out=locate(str(tmp_path))))
            assert "data:image/jpeg" in page
        finally:
            moved.rename(shards)

    def test_other_shards(self, pictured: Sweep, tmp_path: Path) -> None:
        write_shards(locate(str(tmp_path)), rows={"train": [1], "val": [1]}, skip={})
        page = body(write_sweep_page(pictured.place, shards=locate(str(tmp_path)), out=locate(str(tmp_path))))
        assert "holds other shards than those" in page


class TestUnfinishedSweep:
    def test_search_alone(self, tmp_path: Path) -> None:
        text = flat(body(write_sweep_page(make_sweep(tmp_path, finished=False).place)))
        assert "This sweep is not finished" in text
        assert "Best so far UnetPlusPlus" in text
        assert "the best of the search, by one seed" in text
        assert "No finalist has been trained to its end" in text

    def test_nothing_yet(self, tmp_path: Path) -> None:
        sweep = Sweep(locate(str(tmp_path / "sweep")))
        sweep.config.write(make_job(tmp_path), fingerprint="0")
        text = flat(body(write_sweep_page(sweep.place)))
        assert "No trial has a score yet" in text
        assert "There is no trial yet" in text
        assert "Training curves" not in text

    def test_random_search_without_encoder(self, tmp_path: Path) -> None:
        sweep = Sweep(locate(str(tmp_path / "sweep")))
        space = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}}
        sweep.config.write(make_job(tmp_path, space=space, search="random"), fingerprint="0")
        params = {"optim.lr": 0.00123456}
        trial = Trial(number=1, name="0001", stage=1, params=params, seed=0, scores=[0.8], parameters=10)
        sweep.run(trial).write_history(history(0.8, 1))
        sweep.write_trials([trial], {"stage 1": 1.0})
        text = flat(body(write_sweep_page(sweep.place)))
        assert "optim.lr log_uniform 0.0001 to 0.01" in text
        assert "lr 0.00123" in text

    def test_no_sweep(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no sweep here: sweep\.yaml is missing"):
            write_sweep_page(locate(str(tmp_path)))


class TestRun:
    def test_finished(self, tmp_path: Path) -> None:
        page = body(write_run_page(make_run(tmp_path).place))
        text = flat(page)
        assert "<h1>Run a&lt;b&gt;run</h1>" in page
        assert "Best epoch 6 of 6" in text
        # 0.9 - 0.4 / 64 = 0.89375.
        assert "Validation IoU 0.8938" in text
        assert "Test Dice 0.9512 (0.9433 to 0.9587) 26 images of 24 patients" in text
        assert page.count("data:image/jpeg") == 1
        assert len(re.findall(r"<tr>", page)) == 1 + 6
        assert "What differs from the defaults" in text
        assert "not finished" not in text

    def test_events(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        run.events.append("workers_lost", f"Lost worker 1 {IMAGE}.", step=12)
        page = body(write_run_page(run.place))
        assert "workers lost 12 Lost worker 1 " in flat(page)
        assert IMAGE not in page

    @pytest.mark.parametrize("epochs", [0, 2])
    def test_unfinished(self, epochs: int, tmp_path: Path) -> None:
        text = flat(body(write_run_page(make_run(tmp_path, epochs=epochs, finished=False).place)))
        assert "This run is not finished" in text
        assert ("The run has finished no epoch yet" in text) == (epochs == 0)
        assert ("Best epoch 2 of 2 so far, 4 asked for" in text) == (epochs == 2)

    def test_no_test_images(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        run.write_summary({"test": None})
        assert "There are no test images" in body(write_run_page(run.place))

    def test_no_run(self, sweep: Sweep, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"there is no run here"):
            write_run_page(locate(str(tmp_path)))
        with pytest.raises(UserError, match=r"expected a run, found a sweep\. Use --sweep"):
            write_run_page(sweep.place)


class TestJob:
    @pytest.mark.parametrize(
        ("arguments", "found"), [([], "none of them"), (["--run", "/a", "--sweep", "/b"], "--sweep /b and --run /a")]
    )
    def test_one_of_both(self, arguments: list[str], found: str) -> None:
        with pytest.raises(UserError, match=rf"expected either --sweep DIR or --run DIR, found {found}"):
            load_settings(ReportJob, arguments)

    def test_shards_of_a_run(self) -> None:
        with pytest.raises(UserError, match="--shards is for the pictures of a sweep"):
            load_settings(ReportJob, ["--run", "/a", "--shards", "/b"])

    def test_report(self, sweep: Sweep, tmp_path: Path) -> None:
        page = report(
            load_settings(ReportJob, ["--sweep", str(sweep.place), "--out", str(tmp_path / "new" / "folder")])
        )
        assert page.uri == f"{tmp_path}/new/folder/report.html"
        assert page.exists()

    def test_command(self, tmp_path: Path) -> None:
        run = make_run(tmp_path)
        command = [sys.executable, str(ROOT / "jobs" / "report.py"), "--run", str(run.place)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"Page: {run.place}/report.html\n"


def test_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ObjectStore(tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.create_bucket("pages")
        sweep = make_sweep(tmp_path, place=locate("s3://pages/sweep"))
        page = write_sweep_page(sweep.place)
        assert page.uri == "s3://pages/sweep/report.html"
        assert 'href="trials/0001/"' in page.read_text()
        # A browser shows it, and does not save it.
        found = store.client().head_object(Bucket="pages", Key="sweep/report.html")
        assert found["ContentType"] == "text/html; charset=utf-8"


def test_size(sweep: Sweep, written: str) -> None:
    # A phone loads it over a slow line, too.
    assert len((sweep.place / "report.html").read_bytes()) < 3 << 20


def test_numbers() -> None:
    assert (decimals(0.12345, 4).text, decimals(0.12345, 4).order) == ("0.1235", 0.12345)
    assert decimals(None, 2).text == decimals(float("nan"), 2).text == "–"
    assert interval({"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}, 2, sign="+") == "+0.50"
    assert [duration(seconds) for seconds in (45, 750, 11520)] == ["45 s", "12.5 min", "3.2 h"]


def test_looks_differ() -> None:
    names = [f"encoder {number}" for number in range(42)]
    assert len({(look.colour, look.marker) for look in charts.styles(names).values()}) == 42
