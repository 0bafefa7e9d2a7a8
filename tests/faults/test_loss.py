"""A loss that is no longer a number."""

from __future__ import annotations

from pathlib import Path

from lungseg_ray.run.checkpoint import list_checkpoints
from tests.faults.conftest import Record
from tests.faults.small import place, train_job
from tests.helpers import find_damage


def test_loss_is_not_a_number(shards: Path, tmp_path: Path, record: Record) -> None:
    """A learning rate that no network survives, without clipping."""
    run = place(tmp_path, "run")
    wild = ("--optim.lr", "1e30", "--optim.encoder_lr", "1e30", "--optim.clip", "0", "--train.average", "0")
    # The first step leaves weights with which the second has no loss.
    every = ("--checkpoint.every_steps", "1")
    with train_job(tmp_path, "run", shards, *wild, *every) as job:
        assert job.wait() == 1, job.output
    text = job.output.split("Error: ")[1]
    assert "The loss is nan at step" in text or "norm of the gradient is" in text
    assert "Images: " in text
    assert "Traceback" not in job.output
    kept = list_checkpoints(run)
    assert f"The last good checkpoint: {kept[0]}" in text
    assert [find_damage(place) for place in kept] == [None] * len(kept)
    record(
        "the loss is not a number: exit 1; the message names the step, the images and the last good checkpoint",
        lost="nothing",
        seconds=None,
    )
