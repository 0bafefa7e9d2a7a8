"""Ends a job in which nothing makes progress any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError

from lungseg_ray.errors import JobFailedError
from lungseg_ray.progress import say

FIRST_REPORT_SECONDS = 60.0
"""Seconds without progress after which the user is first told what is waited for."""
STALL_SECONDS = 1800.0
"""Seconds without progress after which a job ends that reads images one by one, such as sharding or prediction."""
_LONGEST_LOOK = 15.0
"""Seconds that one interval counts for at most. A longer one means that the machine slept, and all workers with it."""


class Watchdog:
    """Reports what is waited for when nothing makes progress for a minute, and ends the job when it lasts.

    Args:
        limit: Seconds without progress after which the job ends.
        setting: The name of the setting that the limit is from; empty if there is none.
        report: Called with a message; first after a minute, then after twice the time, and so on.
    """

    def __init__(self, limit: float, report: Callable[[str], None], *, setting: str = "") -> None:
        self._limit = limit
        self._setting = f" ({setting} = {limit:.0f})" if setting else ""
        self._report = report
        self._seen: Mapping[int, int] = {}
        self._last: float | None = None
        self._still = 0.0
        self._next = FIRST_REPORT_SECONDS

    def look(self, ticks: Mapping[int, int], *, now: float, waiting_for: Callable[[], str]) -> None:
        """Takes note of how far every worker has come.

        Args:
            ticks: For each rank a number that grows with its progress; empty while there are no workers.
            now: Seconds of a monotonic clock.
            waiting_for: Returns what is waited for, in words.

        Raises:
            JobFailedError: If nothing has made progress for longer than the limit.
        """
        passed = min(now - self._last, _LONGEST_LOOK) if self._last is not None else 0.0
        self._last = now
        if ticks != self._seen:
            self._seen, self._still, self._next = dict(ticks), 0.0, FIRST_REPORT_SECONDS
            return
        self._still += passed
        if self._still >= self._limit:
            raise JobFailedError(
                f"Nothing has moved for {self._still:.0f} s{self._setting}. "
                f"Waited for: {waiting_for()}. What was saved is safe, and the same command resumes."
            )
        if self._still >= self._next:
            self._report(f"Nothing has moved for {self._still:.0f} s. Waiting for: {waiting_for()}")
            self._next *= 2


class StalledError(JobFailedError, ExecutionTimeoutError):
    """Nothing moves in an execution of Ray Data; by its second base, Ray Data does not take it for a fault of Ray's."""


class StallGuard(ExecutionCallback):
    """Says what an execution of Ray Data waits for, and ends it when no task of it ends for `STALL_SECONDS`."""

    def __init__(self) -> None:
        self._watchdog = Watchdog(STALL_SECONDS, say)

    def on_execution_step(self, executor: Any) -> None:
        """Looks at the tasks.

        Args:
            executor: The execution.

        Raises:
            StalledError: If nothing has moved for too long.
        """
        operators = [*executor._topology]
        ticks = {number: one.metrics.num_tasks_finished for number, one in enumerate(operators)}

        def waiting_for() -> str:
            active = sum(one.num_active_tasks() for one in operators)
            return f"{active} task(s) that run or wait for a free CPU; {free_resources()}"

        try:
            self._watchdog.look(ticks, now=time.monotonic(), waiting_for=waiting_for)
        except JobFailedError as error:
            raise StalledError(str(error)) from None


def end_if_stalled(data: ray.data.Dataset) -> None:
    """Lets the execution of a dataset end with a `StalledError` when nothing in it moves for `STALL_SECONDS`.

    Args:
        data: The dataset.
    """
    data.context.custom_execution_callback_classes = [StallGuard]
    # Ray Data has a limit of its own, which says nothing before it ends the job.
    data.context.execution_no_progress_timeout_s = -1


def free_resources() -> str:
    """Returns in words which CPUs and GPUs of the connected cluster are free."""
    free, all_ = ray.available_resources(), ray.cluster_resources()
    parts = [f"{free.get(name, 0):g} of {all_.get(name, 0):g} {name}(s)" for name in ("CPU", "GPU")]
    return f"free in the cluster: {', '.join(parts)} (`ray status` says who has the others)"
