"""A cluster that loses a node and gets another."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.faults.conftest import LOST, Record
from tests.faults.small import Cluster, newest_step, now, place, reached, train_job, went_on


def test_a_node_goes_and_comes(shards: Path, tmp_path: Path, record: Record) -> None:
    run = place(tmp_path, "run")
    more = ("--train.min_workers", "1", "--train.device", "cpu")
    with Cluster(tmp_path, cpus=1) as cluster:
        node = cluster.add_node(cpus=2)
        with train_job(tmp_path, "run", shards, *more, epochs=150, environment=cluster.environment) as job:
            job.saw(r"^Training from the start on 2 worker\(s\)")
            reached(run, 15, job)
            newest = newest_step(run)
            start = now()
            os.kill(node, signal.SIGKILL)
            job.saw(r"^Training from .* on 1 worker\(s\)", seconds=180)
            fewer, step = went_on(job, start)
            assert step >= newest
            reached(run, step + 9, job)
            start = now()
            cluster.add_node(cpus=2)
            job.saw(r"^Training from .* on 2 worker\(s\)", seconds=240, times=2)
            again, _ = went_on(job, start, times=3)
            job.signal(signal.SIGINT)
            assert job.wait() == 130, job.output
    record("elastic: a node is lost, the run continues with 1 of 2 workers", lost=LOST, seconds=fewer)
    record("elastic: a node joins, the run continues with 2 workers", lost=LOST, seconds=again)
