"""A loss that is no longer a number."""

from __future__ import annotations

from pathlib import Path

from lungseg_ray.run import checkpoint
from tests.faults.conftest import Record
from tests.faults.small import kept_steps, place, train_job


def test_loss_is_not_a_number(shards: Path, tmp_path: Path, record: Record) -> None:
    """A learning rate that no network survives, without clipping."""
    run = place(tmp_path, "run")
    wild = ("--optim.lr", "1e30", "--optim.encoder_lr", "1e30", "--optim.clip", "0", "--train.average", "0")
    with train_job(tmp_path, "run", shards, *wild) as job:
        assert job.wait() == 1, job.output
    text = job.output.split("Error: ")[1]
    assert "The loss is nan at step" in text or "norm of the gradient is" in text
    assert "Images: " in text
    assert "The last good checkpoint: " in text
    assert "Traceback" not in job.output
    assert all(checkpoint.find_damage(run / checkpoint.folder_name(step)) is None for step in kept_steps(run))
    record(
        "the loss is not a number: exit 1; the message names the step, the images and the last good checkpoint",
        lost="nothing",
        seconds=None,
    )
