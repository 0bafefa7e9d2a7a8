from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.run import checkpoint
from lungseg_ray.run.folder import CONFIG, ENVIRONMENT, HISTORY, SUMMARY, Run
from lungseg_ray.run.progress import FIGURES, Progress
from lungseg_ray.storage import locate
from tests.helpers import make_settings

PRINT = "ab" * 32
OTHER_PRINT = "cd" * 32


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(locate(str(tmp_path)) / "first")


def keep(run: Run, losses: list[float], *, at: int | None = None) -> None:
    """Writes the checkpoint after `at` epochs (all of them by default) of 10 steps."""
    rows: list[dict[str, float]] = [
        {"epoch": epoch, "step": 10 * epoch, "val_loss": loss} for epoch, loss in enumerate(losses, start=1)
    ]
    done = at or len(rows)
    folder = Path((run.place / checkpoint.folder_name(10 * done)).path)
    folder.mkdir(parents=True)
    progress = Progress(epoch=done, step=10 * done, precision="fp32", history=rows[:done])
    weights = {"w": torch.full((2,), float(done))}
    checkpoint.write_folder(folder, checkpoint.Checkpoint(weights, None, {}, progress))


def open_run(run: Run, settings: Settings, *, fingerprint: str) -> bool:
    """What a training job does; whether the run was there already."""
    there = run.can_resume(settings, fingerprint=fingerprint)
    if not there:
        run.start(settings, fingerprint=fingerprint)
        keep(run, [0.9])
    return there


class TestOpen:
    def test_new(self, run: Run) -> None:
        settings = make_settings(optim={"lr": 1e-5}, corpus={"mask_values": {0: 0, 9: "ignore"}})
        assert open_run(run, settings, fingerprint=PRINT) is False
        kept = run.started_with()
        assert (kept.settings, kept.shards) == (settings, PRINT)
        assert yaml.safe_load((run.place / CONFIG).read_text())["settings"]["optim"]["lr"] == 1e-5
        environment = json.loads((run.place / ENVIRONMENT).read_text())
        assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
        assert {"command", "python", "platform", "cores"} <= set(environment)

    def test_the_same_settings_go_on(self, run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        before = (run.place / CONFIG).read_bytes()
        assert open_run(run, make_settings(), fingerprint=PRINT) is True
        assert (run.place / CONFIG).read_bytes() == before

    def test_without_shards_their_places_are_compared(self, run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        elsewhere = make_settings(shards={"root": "/elsewhere"}, corpus={"root": "/others"})
        assert run.can_resume(elsewhere, fingerprint=PRINT)
        assert run.can_resume(make_settings(), fingerprint=None)
        with pytest.raises(UserError, match=r"corpus\.root: .* -> /others\s+shards\.root: .* -> /elsewhere"):
            run.can_resume(elsewhere, fingerprint=None)

    def test_other_settings_are_refused(self, run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        changed = make_settings(optim={"lr": 0.5}, train={"seed": 3}, model={"encoder": "resnet18"})
        with pytest.raises(UserError, match="this run was started otherwise") as error:
            open_run(run, changed, fingerprint=PRINT)
        lines = [line.strip() for line in str(error.value).splitlines()]
        assert lines[1:-1] == [
            "model.encoder: timm-regnety_002 -> resnet18",
            "optim.lr: 0.005 -> 0.5",
            "train.seed: 0 -> 3",
        ]
        assert "Use another runs.name" in lines[-1]
        assert run.started_with().settings == make_settings()

    @pytest.mark.parametrize(
        "changed",
        [
            {"feed": {"tasks": 3}},
            {"feed": {"ahead": 1}},
            {"train": {"workers": 2}},
            {"train": {"threads": 7}},
            {"train": {"device": "cpu"}},
            {"shards": {"root": "elsewhere", "max_set_aside": 0.5}},
            {"train": {"early_stop": 2}},
            {"runs": {"root": "moved"}},
            {"evaluate": {"threshold": 0.25}},
            {"checkpoint": {"keep": 9}},
            {"corpus": {"root": "moved", "about": "x"}},
        ],
    )
    def test_free_settings_may_change(self, changed: dict[str, Any], run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        assert open_run(run, make_settings(**changed), fingerprint=PRINT) is True

    @pytest.mark.parametrize(
        "changed",
        [
            {"feed": {"window": 9}},
            {"feed": {"preset": "light"}},
            {"train": {"accumulate": 2}},
            {"train": {"epochs": 3}},
            {"train": {"precision": "bf16"}},
            {"loss": {"bce": 0.5}},
            {"model": {"encoder": "resnet18"}},
        ],
    )
    def test_binding_settings_may_not(self, changed: dict[str, Any], run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        ((section, leaf),) = changed.items()
        with pytest.raises(UserError, match=rf"{section}\.{next(iter(leaf))}: .* -> "):
            open_run(run, make_settings(**changed), fingerprint=PRINT)

    def test_epochs_may_grow(self, run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        assert open_run(run, make_settings(train={"epochs": 9}), fingerprint=PRINT) is True

    def test_other_shards_are_refused(self, run: Run) -> None:
        open_run(run, make_settings(shards={"root": "here"}), fingerprint=PRINT)
        with pytest.raises(UserError, match=r"shards in .*/there: fingerprint abababababab -> cdcdcdcdcdcd"):
            open_run(run, make_settings(shards={"root": "there"}), fingerprint=OTHER_PRINT)

    def test_check_alone_writes_nothing(self, run: Run) -> None:
        assert run.can_resume(make_settings(), fingerprint=None) is False
        assert not run.place.exists()

    def test_shards_that_are_not_made_yet_are_not_compared(self, run: Run) -> None:
        open_run(run, make_settings(), fingerprint=PRINT)
        assert run.can_resume(make_settings(), fingerprint=None) is True
        with pytest.raises(UserError, match=r"train\.seed: 0 -> 3"):
            run.can_resume(make_settings(train={"seed": 3}), fingerprint=None)

    def test_checkpoints_without_a_configuration(self, run: Run) -> None:
        keep(run, [0.5])
        with pytest.raises(UserError, match=r"config\.yaml: is missing beside the checkpoints"):
            open_run(run, make_settings(), fingerprint=PRINT)
        assert not (run.place / CONFIG).exists()


class TestStartedWith:
    def test_no_run(self, run: Run) -> None:
        with pytest.raises(UserError, match=r"first: there is no run here: config\.yaml is missing"):
            run.started_with()

    @pytest.mark.parametrize(
        "text",
        ["a: [", "", "shards: x\n", "shards: x\nsettings:\n  train:\n    epochs: 0\n", "- 1\n"],
    )
    def test_unreadable(self, text: str, run: Run) -> None:
        (run.place / CONFIG).write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
            run.started_with()


LOSSES = {1: 0.1 + 0.2, 2: 1e-9, 3: 0.5}


def test_history(run: Run) -> None:
    rows = [{**dict.fromkeys(FIGURES, 0.0), "epoch": epoch, "loss": loss} for epoch, loss in LOSSES.items()]
    run.write_history(rows[:2])
    run.write_history(rows)
    read = list(csv.DictReader(io.StringIO((run.place / HISTORY).read_text())))
    assert {int(row["epoch"]): float(row["loss"]) for row in read} == LOSSES
    assert run.read_history() == rows


def test_history_before_the_first_epoch(run: Run) -> None:
    assert run.read_history() == []


def test_summary(run: Run) -> None:
    assert run.summary() is None
    run.write_summary({"best_epoch": 3, "test": None})
    assert run.summary() == {"best_epoch": 3, "test": None}
    assert (run.place / SUMMARY).is_file()


class TestTrained:
    def test_by_epochs(self, run: Run) -> None:
        settings = make_settings(train={"epochs": 2})
        assert run.is_trained(settings) is False
        keep(run, [0.5])
        assert run.is_trained(settings) is False
        keep(run, [0.5, 0.4])
        assert run.is_trained(settings) is True

    def test_by_early_stopping(self, run: Run) -> None:
        keep(run, [0.5, 0.4, 0.45, 0.46])
        assert run.is_trained(make_settings(train={"epochs": 9, "early_stop": 2})) is True
        assert run.is_trained(make_settings(train={"epochs": 9, "early_stop": 3})) is False


class TestBest:
    def test_is_the_lowest_and_the_progress_is_the_newest(self, run: Run) -> None:
        for at in (1, 2, 3):
            keep(run, [0.5, 0.3, 0.4], at=at)
        best, progress = run.read_best()
        assert best.weights["w"].tolist() == [2.0, 2.0]
        assert (best.progress.epoch, progress.epoch) == (2, 3)

    def test_none_yet(self, run: Run) -> None:
        with pytest.raises(UserError, match="the run has no checkpoint yet"):
            run.read_best()

    def test_damaged(self, run: Run) -> None:
        for at in (1, 2):
            keep(run, [0.3, 0.4], at=at)
        (run.place / checkpoint.folder_name(10) / checkpoint.WEIGHTS).write_bytes(b"cut")
        with pytest.raises(UserError, match=r"checkpoint_000000010/weights\.safetensors.*It is the run's best"):
            run.read_best()


class TestPrune:
    def test_what_stays_is_the_best_and_the_newest_that_can_be_used(self, run: Run) -> None:
        losses = [0.9, 0.3, 0.5, 0.4, 0.6, 0.7]
        for at in range(1, 7):
            keep(run, losses, at=at)
        (run.place / HISTORY).write_text("epoch\n")
        (run.place / f".{checkpoint.folder_name(70)}{checkpoint.PART}" / "half").write_text("")
        (run.place / checkpoint.folder_name(60) / checkpoint.WEIGHTS).write_bytes(b"cut")
        found = run.newest_files()
        assert found.place is not None
        assert found.content is not None
        assert found.place.name == checkpoint.folder_name(50)
        run.prune_checkpoints(checkpoint.parse(found.content, found.place).progress, keep=2)
        left = [place.name for place in checkpoint.list_checkpoints(run.place)]
        assert left == [checkpoint.folder_name(step) for step in (50, 40, 20)]
        assert not list(Path(run.place.path).glob(".checkpoint*"))
        assert (run.place / HISTORY).exists()

    def test_a_part_of_the_first_checkpoint_goes(self, run: Run) -> None:
        keep(run, [0.9])
        (run.place / checkpoint.folder_name(10) / checkpoint.CHECKSUMS).delete()
        assert run.newest_files().place is None
        run.prune_checkpoints(None, keep=2)
        assert checkpoint.list_checkpoints(run.place) == []

    def test_where_nothing_can_be_used_it_is_said(self, run: Run) -> None:
        keep(run, [0.9])
        (run.place / HISTORY).write_text("epoch\n")
        (run.place / checkpoint.folder_name(10) / checkpoint.CHECKSUMS).delete()
        for look in (run.newest_files, run.newest_progress):
            with pytest.raises(UserError, match="none of its 1 checkpoints can be used"):
                look()
        assert len(checkpoint.list_checkpoints(run.place)) == 1


def test_a_run_that_is_extended_is_not_finished_any_more(run: Run) -> None:
    run.write_summary({"best_epoch": 3, "test": None})
    for _ in range(2):
        run.extend(make_settings(train={"epochs": 9}), fingerprint="f")
        assert run.summary() is None
        assert run.started_with().settings.train.epochs == 9


class TestChangedByOthers:
    """Files of a run that someone has changed: a sentence that names the file."""

    @pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b'{"epochs": "many"}', b"[" * 100_000])
    def test_summary(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(UserError, match=r"summary\.json: expected what this version writes there"):
            Run(locate(str(tmp_path))).summary()

    @pytest.mark.parametrize(
        "content",
        [b"epoch\nx\n", b"epoch,step\n1\n", b"\xff", b"epoch\n1,2\n", b"epoch,step\n1,1\n", b'a\n"' + b"x" * (1 << 18)],
    )
    def test_history(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "history.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"history\.csv: expected the figures of each epoch"):
            Run(locate(str(tmp_path))).read_history()

    @pytest.mark.parametrize("name", ["summary.json", "history.csv"])
    def test_a_pipe(self, name: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / name)
        run = Run(locate(str(tmp_path)))
        with pytest.raises(OSError, match="expected a file, found a pipe"):
            run.summary() if name == "summary.json" else run.read_history()
