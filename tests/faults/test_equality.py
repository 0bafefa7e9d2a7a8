"""A run that is killed three times ends as the one that was never disturbed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.small import (
    STEPS,
    assert_whole,
    history,
    newest_step,
    place,
    raylets,
    reached,
    train_job,
    train_workers,
)
from tests.processes import ray_processes, wait_until

EPOCHS = 8


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in a)


@pytest.mark.timeout(900)
def test_killed_three_times(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    before = ray_processes()
    cuts = sorted(random.Random(seed).sample(range(3, STEPS * EPOCHS - 12), 3))
    with train_job(tmp_path, "through", shards, epochs=EPOCHS) as job:
        assert job.wait() == 0, job.output
    run = place(tmp_path, "killed")
    said = [f"seed {seed}"]

    # A training worker, which the job starts again by itself.
    with train_job(tmp_path, "killed", shards, epochs=EPOCHS) as job:
        reached(run, cuts[0], job)
        os.kill(train_workers(job)[-1], signal.SIGKILL)
        said.append(f"train worker killed after the checkpoint of step {newest_step(run)}")
        job.saw("^Training from", times=2)
        # The driver.
        reached(run, cuts[1], job)
        job.signal(signal.SIGKILL)
        job.wait()
        said.append(f"driver killed after the checkpoint of step {newest_step(run)}")
    assert wait_until(lambda: ray_processes() <= before, seconds=150)
    # A node of Ray: the only one, so that the job ends with it.
    with train_job(tmp_path, "killed", shards, epochs=EPOCHS) as job:
        # The driver may have come beyond this step before it was killed.
        job.saw("^Training from", seconds=120)
        reached(run, cuts[2], job)
        os.kill(raylets()[0], signal.SIGKILL)
        said.append(f"raylet killed after the checkpoint of step {newest_step(run)}")
        assert job.wait() == 1
    with train_job(tmp_path, "killed", shards, epochs=EPOCHS) as job:
        assert job.wait() == 0, job.output
    assert_whole(run, epochs=EPOCHS)

    difference = largest_difference(history(place(tmp_path, "through")), history(run))
    weights = [load_file(tmp_path / name / "best/model.safetensors") for name in ("through", "killed")]
    assert weights[0].keys() == weights[1].keys()
    weight_difference = max(
        float((weights[0][key].double() - weights[1][key].double()).abs().max()) for key in weights[0]
    )
    said.append(f"largest difference in history.csv {difference:.3g}, in the best weights {weight_difference:.3g}")
    with capsys.disabled():
        print("\n" + "\n".join(said))
    assert difference <= 1e-6
    assert weight_difference == 0
