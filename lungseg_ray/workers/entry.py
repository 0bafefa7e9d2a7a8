"""What Ray Train's controller imports of a run. It imports little, because the workers start only after it."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback

from lungseg_ray.imports import quick_imports
from lungseg_ray.text import first_line
from lungseg_ray.workers.mailbox import Mailbox

TASK = "task"
"""The key of the configuration under which the reference to the task of the workers is."""


def start(config: dict[str, Any]) -> None:
    """Runs the task of a worker, which the controller does not unpack.

    Args:
        config: The configuration that Ray Train passes to each worker.
    """
    with quick_imports():
        task = ray.get(config[TASK])
    task()


class Losses(UserCallback):
    """Reports workers that are lost.

    Args:
        box: The mailbox of the driver.
    """

    def __init__(self, box: Mailbox) -> None:
        self._mailbox = box
        self._lost: set[str] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Reports the workers that Ray Train has lost; Ray Train calls it.

        After a notice of preemption, Ray Train calls it again and again with the same workers, until the others end.
        """
        errors = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
        dead = {rank: error for rank, error in errors.items() if isinstance(error, ray.exceptions.RayError)}
        actors = {str(error.actor_id) for error in dead.values() if getattr(error, "actor_id", None)}
        if actors and actors <= self._lost:
            return
        self._lost |= actors
        # The other workers merely find that they cannot reach the one that died.
        reasons = [f"worker {rank} ({first_line(error)})" for rank, error in sorted((dead or errors).items())]
        self._mailbox.workers_lost(f"Lost {', '.join(reasons)}. Resuming from the last checkpoint.")
