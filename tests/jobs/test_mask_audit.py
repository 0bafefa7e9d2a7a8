"""The audit of masks by the models of a sweep."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lungseg_ray.config import SweepJob
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.mask_audit import TABLE, audit_masks
from lungseg_ray.run.folder import BEST
from lungseg_ray.shards.parts import split_off
from lungseg_ray.storage import locate
from lungseg_ray.sweep.ledger import Sweep, Trial
from tests.helpers import make_settings, write_shards
from tests.inference.helpers import save_small_model


def test_parts_without_a_finished_trial_are_named(cluster: None, tmp_path: Path) -> None:
    shards = locate(str(tmp_path / "shards"))
    index = write_shards(shards, rows={"train": [5, 4], "val": [3]}, skip={})
    space = {"feed.leave_out": {"grid": ["0/2", "1/2"]}}
    sweep = Sweep(locate(str(tmp_path / "sweep")))
    sweep.config.write(
        SweepJob.model_validate({"sweep": {"space": space}, "shards": {"root": str(shards)}}), fingerprint="f"
    )
    trials = []
    for number, state in enumerate(("done", "failed")):
        part = f"{number}/2"
        base = {"number": number + 1, "name": f"t{number}", "stage": 1, "params": {"feed.leave_out": part}, "seed": 0}
        trials.append(Trial.model_validate({**base, "scores": [0.5], "state": state}))
        run = sweep.run(trials[-1])
        settings = make_settings(shards={"root": str(shards)}, feed={"leave_out": part, "batch": 2})
        run.config.write(settings, fingerprint=index.fingerprint)
        save_small_model(run.place / BEST)
    sweep.write_trials(trials, {})

    notes: list[str] = []
    masks, page = audit_masks(sweep.place, note=notes.append)
    assert page.exists()
    assert len(notes) == 1
    assert "without the training images of part 1/2" in notes[0]
    _, first = split_off(shards, index, "0/2")
    assert sum(one.split == "train" for one in masks) == len(first)
    assert 0 < len(first) < 9
    with (tmp_path / "sweep" / TABLE).open() as file:
        assert [row["image_id"] for row in csv.DictReader(file)] == [one.image_id for one in masks]

    sweep.write_trials([trial.model_copy(update={"state": "done"}) for trial in trials], {})
    masks, _ = audit_masks(sweep.place, note=notes.append)
    assert len(notes) == 1
    assert sum(one.split == "train" for one in masks) == 9

    sweep.write_trials([trial.model_copy(update={"state": "failed"}) for trial in trials], {})
    with pytest.raises(UserError, match="no trial of this sweep leaves a part of the patients out"):
        audit_masks(sweep.place, note=notes.append)
