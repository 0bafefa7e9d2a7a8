from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from lungseg_ray.config import Settings
from lungseg_ray.run.folder import HISTORY, Run
from lungseg_ray.storage import locate
from lungseg_ray.training.events import Event
from lungseg_ray.workers.mailbox import Heartbeat
from lungseg_ray.workers.metrics import Metrics
from lungseg_ray.workers.process_group import ProcessGroup
from lungseg_ray.workers.worker import Worker
from tests.run.test_checkpoint_writer import content, writer_of


class Driver:
    """A driver that hears everything and asks for nothing."""

    def emit(self, event: Event) -> None:
        pass

    def on_start(self, step: int) -> None:
        pass

    def preemption_check_due(self) -> bool:
        return False

    def preempted(self) -> bool:
        return False


def test_history_of_a_process_that_was_killed_before_it_wrote_it(tmp_path: Path) -> None:
    run = Run(locate(str(tmp_path / "run")))
    writer = writer_of(run, print)
    writer.save(content(20, 0.5, 0.7))
    writer.flush()
    whole = (run.place / HISTORY).read_text()
    (run.place / HISTORY).delete()
    worker = Worker(
        Settings(),
        run,
        feed=cast(Any, None),
        group=ProcessGroup(0, 1, torch.device("cpu")),
        driver=Driver(),
        heartbeat=Heartbeat(cast(Any, None), 0, "its start"),
        token=writer._token,
        metrics=Metrics("run", 0),
    )
    found = worker.restore()
    assert found is not None
    assert found.progress.step == 20
    assert (run.place / HISTORY).read_text() == whole
