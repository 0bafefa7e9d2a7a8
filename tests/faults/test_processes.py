"""Processes that die or sleep: workers, nodes, drivers, data tasks, the whole machine."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from tests.faults.conftest import LOST, Record
from tests.faults.small import (
    STEPS,
    Cluster,
    assert_whole,
    kept_steps,
    newest_step,
    now,
    place,
    raylets,
    reached,
    train_job,
    train_workers,
    went_on,
)
from tests.processes import processes, ray_processes, wait_until


def test_train_worker_killed(shards: Path, tmp_path: Path, record: Record) -> None:
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards) as job:
        reached(run, 15, job)
        newest = newest_step(run)
        start = now()
        os.kill(train_workers(job)[0], signal.SIGKILL)
        seconds, step = went_on(job, start)
        assert job.wait() == 0, job.output
    assert step >= newest
    assert job.count("Lost worker 0") == 1
    assert_whole(run)
    record("a training worker is killed", lost=LOST, seconds=seconds)


def test_raylet_killed(shards: Path, tmp_path: Path, record: Record) -> None:
    """A node with training workers goes; another has room for them."""
    run = place(tmp_path, "run")
    # The head has but one CPU: at least one of the two workers is on the other node.
    with Cluster(tmp_path, cpus=1) as cluster:
        raylet = cluster.add_node(cpus=2)
        more = ("--train.device", "cpu")
        with train_job(tmp_path, "run", shards, *more, epochs=12, environment=cluster.environment) as job:
            reached(run, 15, job)
            cluster.add_node(cpus=2)
            newest = newest_step(run)
            start = now()
            os.kill(raylet, signal.SIGKILL)
            seconds, step = went_on(job, start)
            assert job.wait() == 0, job.output
    assert step >= newest
    assert_whole(run, epochs=12)
    record("the raylet of a node is killed, and another node has room", lost=LOST, seconds=seconds)


def test_preemption(shards: Path, tmp_path: Path, record: Record) -> None:
    """A node is announced to go, as a spot node is, and goes after 20 s."""
    run = place(tmp_path, "run")
    with Cluster(tmp_path, cpus=1) as cluster:
        raylet = cluster.add_node(cpus=2)
        more = ("--checkpoint.every_steps", "0", "--train.device", "cpu")
        with train_job(tmp_path, "run", shards, *more, epochs=60, environment=cluster.environment) as job:
            job.saw(r"^epoch   1/60")
            # The workers need whole CPUs and the head has but one, so that at least one of them is on the other node.
            (node,) = [name for name, cpus in cluster.nodes().items() if cpus == 2]
            cluster.announce_loss(node, seconds=20)
            job.saw("^A node is about to be taken away: saving the checkpoint of", seconds=20)
            found = re.search(r"saving the checkpoint of (step|epoch) (\d+)", job.output)
            assert found
            # No other checkpoints are written within an epoch.
            saved = int(found[2]) * (1 if found[1] == "step" else STEPS)
            assert wait_until(lambda: saved in kept_steps(run), seconds=10), job.output
            cluster.add_node(cpus=2)
            time.sleep(10)
            start = now()
            os.kill(raylet, signal.SIGKILL)
            seconds, step = went_on(job, start)
            job.signal(signal.SIGINT)
            assert job.wait() == 130, job.output
    assert step >= saved
    record("a node is taken away after a notice", lost="the steps since the checkpoint at the notice", seconds=seconds)


def test_raylet_of_the_driver_killed(shards: Path, tmp_path: Path, record: Record) -> None:
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards) as job:
        reached(run, 15, job)
        newest = newest_step(run)
        os.kill(raylets()[0], signal.SIGKILL)
        assert job.wait(seconds=90) == 1
        # Ray may print something after it.
        assert "the same command resumes" in job.output
    start = now()
    with train_job(tmp_path, "run", shards) as job:
        seconds, step = went_on(job, start, times=1)
        assert job.wait() == 0, job.output
    assert step >= newest
    assert_whole(run)
    record("the only raylet is killed: exit 1; resumed with the same command", lost=LOST, seconds=seconds)


def test_driver_killed(shards: Path, tmp_path: Path, record: Record) -> None:
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards) as job:
        reached(run, 15, job)
        newest = newest_step(run)
        job.signal(signal.SIGKILL)
        job.wait()
    start = now()
    with train_job(tmp_path, "run", shards) as job:
        seconds, step = went_on(job, start, times=1)
        assert job.count("Taking the run over from process") == 1
        assert job.wait() == 0, job.output
    assert step >= newest
    assert_whole(run)
    record("the driver is killed; resumed with the same command", lost=LOST, seconds=seconds)


def test_data_task_killed(shards: Path, tmp_path: Path, record: Record) -> None:
    """As the kernel or Ray's memory monitor would: Ray runs the task again, and nothing is lost."""
    run = place(tmp_path, "run")

    def data_task() -> int | None:
        names = ("ray::MapBatches", "ray::Map")
        return next((pid for pid, command in processes().items() if command.startswith(names)), None)

    with train_job(tmp_path, "run", shards, "--feed.ahead", "4", epochs=40, workers=1) as job:
        reached(run, 3, job)
        killed = 0
        end = time.monotonic() + 60
        while killed < 3 and time.monotonic() < end and job.process.poll() is None:
            if pid := data_task():
                os.kill(pid, signal.SIGKILL)
                killed += 1
                time.sleep(2)
        assert killed, "no data task was met"
        assert job.wait() == 0, job.output
    assert job.count("^Training from") == 1
    assert_whole(run, epochs=40)
    record(
        f"a data task is killed {killed} times, as if for lack of memory",
        lost="nothing: Ray runs the task again",
        seconds=0,
    )


def test_ctrl_c(shards: Path, tmp_path: Path, record: Record) -> None:
    before = ray_processes()
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards) as job:
        reached(run, 15, job)
        start = now()
        job.signal(signal.SIGINT)
        assert job.wait() == 130, job.output
        seconds = now() - start
    stopped = int(job.output.split("Stopped after step ")[1].split(";")[0])
    assert newest_step(run) == stopped
    assert wait_until(lambda: ray_processes() <= before, seconds=60)
    with train_job(tmp_path, "run", shards) as job:
        _, step = went_on(job, start, times=1)
        assert job.wait() == 0, job.output
    assert step == stopped
    assert_whole(run)
    record(f"Ctrl-C: saves immediately, ends after {seconds:.0f} s, exit 130", lost="nothing", seconds=None)


def test_two_drivers(shards: Path, tmp_path: Path, record: Record) -> None:
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards) as job:
        reached(run, 3, job)
        with train_job(tmp_path, "run", shards) as second:
            assert second.wait() == 2, second.output
            assert f"held by process {job.process.pid}" in second.output
        assert job.wait() == 0, job.output
    assert_whole(run)
    record("a second driver starts on the same run: refused, exit 2", lost="nothing", seconds=None)


def test_machine_suspended(shards: Path, tmp_path: Path, record: Record) -> None:
    """Every process of the job sleeps for a minute, as on a machine that is suspended."""
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards, epochs=8) as job:
        reached(run, 15, job)
        newest = newest_step(run)
        asleep = [*job.descendants(), job.process.pid]
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(60)
        start = now()
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        assert wait_until(lambda: newest_step(run) > newest or job.process.poll() is not None, seconds=180), job.output
        seconds = now() - start
        code = job.wait()
    if code:
        assert "the same command resumes" in job.output
        with train_job(tmp_path, "run", shards, epochs=8) as job:
            assert job.wait() == 0, job.output
    assert_whole(run, epochs=8)
    what = "the machine is suspended for 60 s" + (": exit 1; resumed with the same command" if code else "")
    record(what, lost="nothing" if job.count("^Training from") == 1 else LOST, seconds=seconds)


def test_nothing_moves(shards: Path, tmp_path: Path, record: Record) -> None:
    """A training worker that hangs is noticed, and the job says what it waited for."""
    run = place(tmp_path, "run")
    with train_job(tmp_path, "run", shards, "--train.stall_seconds", "70") as job:
        reached(run, 3, job)
        start = now()
        os.kill(train_workers(job)[1], signal.SIGSTOP)
        assert job.wait() == 1, job.output
        seconds = now() - start
    assert job.count("^Nothing has moved for 6. s. Waiting for: rank 0: step") == 1
    assert job.count("^Error: Nothing has moved for 7. s .*rank 1: ") == 1
    with train_job(tmp_path, "run", shards) as job:
        assert job.wait() == 0, job.output
    assert_whole(run)
    record(
        f"a worker hangs: reported after 60 s, exit 1 after {seconds:.0f} s (`train.stall_seconds` = 70)",
        lost=LOST,
        seconds=None,
    )
