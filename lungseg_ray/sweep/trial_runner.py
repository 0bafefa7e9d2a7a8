"""Runs the trials of one stage of a sweep: assigns them to Ray Tune, and records what they report."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from lungseg_ray.cluster.planning import TrialsPlan, trials_in_memory
from lungseg_ray.cluster.watchdog import Watchdog
from lungseg_ray.config import SweepJob
from lungseg_ray.errors import JobFailedError, StoppedError
from lungseg_ray.run.lease import Lease
from lungseg_ray.run.tracking import Tracking
from lungseg_ray.shards.index import ShardIndex
from lungseg_ray.storage import retry
from lungseg_ray.sweep.display import SweepDisplay
from lungseg_ray.sweep.ledger import Sweep, TrialUpdate
from lungseg_ray.sweep.search import Search
from lungseg_ray.sweep.trial import MORE_MEMORY, REPORT, Assignment, Task, TrialReport, run_trial
from lungseg_ray.workers.mailbox import Messages, Pulse, mailbox
from lungseg_ray.workers.signals import stop_signals
from lungseg_ray.workers.supervise import Supervisor

STILL_SECONDS = 60.0
"""Seconds for which a sweep that is asked to stop waits for trials that make no progress."""

Stage = Literal[1, 2]


class TrialRunner:
    """Runs the trials of one stage.

    Args:
        job: The settings of the sweep.
        sweep: The folder of the sweep.
        index: The index of the shards.
        shared: Whole shards in the object store, by file.
        plan: How trials share the cluster.
        lease: The lease of the sweep.
        console: The console that the user reads.
        stage: 1, the search, or 2, the finalists.
        services: The services that show runs.
        by_memory: Whether only as many trials run at the same time as the memory of the cluster is enough for.
    """

    def __init__(
        self,
        job: SweepJob,
        *,
        sweep: Sweep,
        index: ShardIndex,
        shared: Mapping[str, ray.ObjectRef],
        plan: TrialsPlan,
        lease: Lease,
        console: Console,
        stage: Stage,
        services: Tracking,
        by_memory: bool,
    ) -> None:
        self._job = job
        self._sweep = sweep
        self._index = index
        self._shared = shared
        self._plan = plan
        self._lease = lease
        self._stage = stage
        self._by_memory = by_memory
        self._key = f"stage {stage}"
        self._before = sweep.seconds()
        self._search = Search(job, sweep.trials(), stage)
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._unreported: set[str] = set()
        self._lost_unreported = 0
        self._start = time.monotonic()
        self._over = self._out_of_time()
        self._failure: str | None = None
        self._display = SweepDisplay(console, sweep, job, stage, services)
        self._received: list[int] = []
        self._left = threading.Event()
        self._ticks: dict[int, int] = {}
        self._moved = time.monotonic()

    def run(self) -> None:
        """Trains until no trial is left to train.

        Raises:
            JobFailedError: If nothing makes progress, the storage fails for too long, or the lease is lost.
            StoppedError: If a signal asked for it.
        """
        if self._over or not self._search.has_moves():
            return
        # What Tune would print and write about a trial is in the table and in the ledger.
        os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
        with (
            mailbox() as box,
            tempfile.TemporaryDirectory(prefix="lungseg-ray-") as scratch,
            stop_signals() as self._received,
            self._display,
        ):
            task = Task(self._job, self._sweep, self._index, self._shared, self._plan, box, self._lease.token)
            supervisor = Supervisor(
                name="tune",
                mailbox=box,
                lease=self._lease,
                watchdog=Watchdog(self._job.train.stall_seconds, self._display.note, setting="train.stall_seconds"),
                should_stop=self._should_stop,
                on_stop=self._on_stop,
                on_messages=self._on_messages,
                waiting_for=_waiting_for,
                leave=self._left.set,
                pulses=self._pulses_of_running,
            )
            try:
                error = supervisor.run(self._tuner(task, scratch).fit)
            finally:
                self.write()
        if self._received:
            text = "Stopped; each trial has saved where it was, and the same command resumes."
            raise StoppedError(text, self._received[0])
        if self._failure:
            raise JobFailedError(f"{self._failure} What was saved is safe, and the same command resumes.")
        if error:
            raise error

    def _tuner(self, task: Task, scratch: str) -> tune.Tuner:
        plan = self._plan
        needs = {"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})}
        trainable = tune.with_resources(tune.with_parameters(run_trial, task=task), needs)
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Assignments(self),
                num_samples=-1,
                max_concurrent_trials=plan.concurrent,
                # A trial of several workers may leave something in its process that holds the CPUs of the next one.
                reuse_actors=plan.training.workers == 1,
            ),
            # What must last lies in the folder of the sweep; Ray's own records are pickles, and lag behind.
            run_config=tune.RunConfig(
                name=self._sweep.place.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=self._job.train.max_failures),
                verbose=0,
                callbacks=[_Leave(self._left)],
            ),
        )

    def _should_stop(self) -> bool:
        if not self._over and self._out_of_time():
            self._over = True
            self._display.note("The time of stage 1 is over: its trials leave off where they are.")
        return bool(self._received or self._over or self._failure)

    def _on_stop(self) -> None:
        if self._received:
            self._over = True
            self._display.note("Stopping: trials save and leave off; a second Ctrl-C stops at once.")

    def _on_messages(self, messages: Messages, alive: bool) -> bool:
        ticks = {number: pulse.ticks for number, pulse in self._pulses_of_running(messages.pulses).items()}
        if ticks != self._ticks:
            self._ticks, self._moved = ticks, time.monotonic()
        self._display.refresh()
        return bool(self._received) and time.monotonic() > self._moved + STILL_SECONDS

    def _pulses_of_running(self, pulses: Mapping[int, Pulse]) -> dict[int, Pulse]:
        running = {trial.number for trial in self._search.trials if trial.state == "running"}
        return {number: pulse for number, pulse in pulses.items() if number in running}

    def _out_of_time(self) -> bool:
        minutes = self._job.sweep.budget.minutes
        return self._stage == 1 and bool(minutes) and self._seconds() > 60 * minutes

    def _seconds(self) -> float:
        return self._before.get(self._key, 0.0) + time.monotonic() - self._start

    def suggest(self, tune_id: str) -> dict[str, Assignment] | Literal["FINISHED"] | None:
        """Returns the next trial for Ray Tune to start.

        Args:
            tune_id: Tune's name for the trial.

        Returns:
            The configuration of `run_trial`; None if there may be a trial later.
        """
        with self._lock:
            ended = self._over or self._failure
            if not ended and self._by_memory and self._search.running >= self._fit_in_memory():
                return None
            move = None if ended else self._search.next()
            if move is None:
                return None if self._search.running and not ended else Searcher.FINISHED
            self._numbers[tune_id] = move.trial.number
        self._unreported.add(tune_id)
        self._save()
        return {"assignment": Assignment(move.trial, move.stop_after_epoch, time.time())}

    def _fit_in_memory(self) -> int:
        """Returns how many trials the memory is enough for, by the largest need of those that have made a step."""
        need = max((trial.memory or 0 for trial in self._search.trials), default=0)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return trials_in_memory([node.get("memory", 0.0) for node in nodes if node.get("CPU")], need)

    def on_report(self, tune_id: str, report: TrialReport) -> None:
        """Records what a trial reports.

        Args:
            tune_id: Tune's name for the trial.
            report: The report.
        """
        number = self._numbers[tune_id]
        self._unreported.discard(tune_id)
        for note in report.notes:
            self._display.note(f"Trial {number}: {note}")
        self._failure = report.failure or self._failure
        if report.update.changes:
            with self._lock:
                self._search.update(number, report.update)
            self._display.show(self._search.trials)
        if report.row is not None:
            self._save()
            self._display.epoch(self._search.trial(number), report.row)

    def on_end(self, tune_id: str, *, lost: bool) -> None:
        """Records that a trial has left off.

        Args:
            tune_id: Tune's name for the trial.
            lost: Whether its process died, as often as is allowed.
        """
        if self._left.is_set():
            # Ray Tune ends its trials when it is left behind, which says nothing about them.
            return
        number = self._numbers.pop(tune_id)
        allowed = self._job.train.max_failures
        update = TrialUpdate()
        if lost and tune_id in self._unreported and self._lost_unreported < allowed:
            # The process died that was about to start the trial; the trial itself has not begun.
            self._lost_unreported += 1
        elif lost:
            times = f"{allowed + 1} times (train.max_failures)"
            reason = f"Its process ended {times}, killed or out of memory. {MORE_MEMORY}"
            update = TrialUpdate(state="failed", reason=reason)
        self._unreported.discard(tune_id)
        with self._lock:
            trial = self._search.end(number, update)
        self._save()
        self._display.ended(trial)

    def _save(self) -> None:
        """Writes the ledger and shows it; an error is kept, since Ray Tune would lose it or blame the trial."""
        try:
            self.write()
        except (OSError, JobFailedError) as error:
            self._failure = str(error)
        self._display.show(self._search.trials)

    def write(self) -> None:
        """Writes the ledger.

        Raises:
            JobFailedError: If another driver has taken the sweep over.
            OSError: If it cannot be written.
        """
        with self._lock:
            trials = self._search.trials
        seconds = {**self._before, self._key: round(self._seconds(), 1)}

        def work() -> None:
            self._lease.token.check()
            self._sweep.write_trials(trials, seconds)

        patience = self._job.storage.patience_seconds
        retry(work, seconds=patience, note=self._display.note, trouble=OSError)


class _Assignments(Searcher):
    """The search as Ray Tune asks for it. It keeps no state: everything is in the ledger."""

    def __init__(self, runner: TrialRunner) -> None:
        super().__init__()
        self._runner = runner

    def suggest(self, trial_id: str) -> Any:
        return self._runner.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._runner.on_report(trial_id, TrialReport.model_validate_json(result[REPORT]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._runner.on_end(trial_id, lost=error)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass


class _Leave(tune.Callback):
    """Ends Ray Tune between two of its steps, where it is left behind."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks, for a sweep that is never restored from them.
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raises an error once Ray Tune is to end.

        Args:
            iteration: The number of the step.
            trials: The trials.
            **info: Nothing.

        Raises:
            JobFailedError: If it is to end.
        """
        if self._left.is_set():
            raise JobFailedError("The sweep is left behind.")


def _waiting_for(pulses: Mapping[int, Pulse]) -> str:
    activities = [f"trial {number}: {pulse.activity}" for number, pulse in sorted(pulses.items())]
    return "; ".join(activities) or "a trial to start"
