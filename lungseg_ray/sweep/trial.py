"""A trial as it runs on the cluster: the training loop in its own process, or on workers of Ray Train."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from ray import tune

from lungseg_ray.cluster.memory import own_memory
from lungseg_ray.cluster.planning import TrialsPlan
from lungseg_ray.config import Settings, SweepJob
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.feed.stream import Source
from lungseg_ray.inference.export import export_best
from lungseg_ray.run.event_log import EventLog
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import Lease, LeaseToken
from lungseg_ray.run.progress import History, rank_epochs, score_of
from lungseg_ray.shards.index import ShardIndex
from lungseg_ray.sweep.ledger import Sweep, Trial, TrialUpdate
from lungseg_ray.training.events import EpochDone, Event, Note, StepDone
from lungseg_ray.training.loop import TrainingDivergedError, train_loop
from lungseg_ray.training.model import model_cost
from lungseg_ray.workers.fit import WorkersLostError, fit
from lungseg_ray.workers.mailbox import Heartbeat, Mailbox
from lungseg_ray.workers.process_group import ProcessGroup
from lungseg_ray.workers.record import record
from lungseg_ray.workers.worker import make_worker

REPORT = "report"
"""The key under which Ray Tune carries a `TrialReport`."""
MORE_MEMORY = "Lower feed.batch or sweep.concurrent, or raise train.accumulate or sweep.gpus_per_trial."


class TrialReport(BaseModel):
    """What a trial reports to the driver of its sweep.

    Attributes:
        update: What the trial has reached, for the ledger.
        row: The history row of an epoch that it has just finished.
        notes: Messages for the user.
        failure: Why the whole sweep must end; None if it need not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    update: TrialUpdate = TrialUpdate()
    row: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Task:
    """What all trials of a stage have in common.

    Attributes:
        job: The settings of the sweep.
        sweep: The folder of the sweep.
        index: The index of the shards.
        shared: Whole shards in the object store, by file.
        plan: How trials share the cluster.
        mailbox: Receives their heartbeats, and asks them to stop.
        token: Shows that the driver holds the sweep.
    """

    job: SweepJob
    sweep: Sweep
    index: ShardIndex
    shared: Mapping[str, ray.ObjectRef]
    plan: TrialsPlan
    mailbox: Mailbox
    token: LeaseToken


@dataclass(frozen=True)
class Assignment:
    """What one trial is to do next.

    Attributes:
        trial: The trial as the ledger has it.
        stop_after_epoch: The epoch after which it leaves off.
        assigned: When the driver assigned it, seconds since the epoch of the clock.
    """

    trial: Trial
    stop_after_epoch: int
    assigned: float


@dataclass
class _TrialDriver:
    """The driver of a sweep as a trial sees it.

    Attributes:
        assigned: When the driver assigned the trial, seconds since the epoch of the clock.
        history: A row for each finished epoch.
        log: The event log of the trial's run, if this process trains it and writes the log.
        notes: Messages that travel with the next report.
        started: Whether the first step is made.
    """

    assigned: float
    history: History
    log: EventLog | None = None
    notes: list[str] = field(default_factory=list)
    started: bool = False

    def emit(self, event: Event) -> None:
        if self.log:
            record(self.log, event)
        match event:
            case Note():
                # Threads have notes, too, but only the main thread may report to Ray Tune.
                self.notes.append(event.text)
            case StepDone():
                update = TrialUpdate()
                if not self.started:
                    update = self._measured(TrialUpdate(startup=round(time.time() - self.assigned, 2)))
                    self.started = True
                if update.changes or self.notes:
                    self.report(update=update)
            case EpochDone():
                # A group of workers that was lost may come to the same epoch again.
                self.history = [*(row for row in self.history if row["epoch"] < event.row["epoch"]), event.row]
                self.report(update=self._measured(reached(self.history)), row=event.row)
            case _:
                pass

    def _measured(self, update: TrialUpdate) -> TrialUpdate:
        """Adds the memory of this process, if it is the one that trains."""
        return update.model_copy(update={"memory": own_memory()}) if self.log else update

    def report(self, *, update: TrialUpdate, row: dict[str, float] | None = None) -> None:
        notes, self.notes = self.notes, []
        _report(TrialReport(update=update, row=row, notes=tuple(notes)))

    def on_start(self, step: int) -> None:
        """Losses of this process are counted by Ray Tune."""

    def preemption_check_due(self) -> bool:
        return False

    def preempted(self) -> bool:
        return False


def reached(history: History) -> TrialUpdate:
    """Returns what a history says of a trial."""
    bests = [rank_epochs(history[:end])[0] for end in range(1, len(history) + 1)]
    if not bests:
        return TrialUpdate()
    return TrialUpdate(
        scores=tuple(score_of(row) for row in bests),
        val_loss=bests[-1]["val_loss"],
        val_dice=bests[-1]["val_dice"],
        best_epoch=int(bests[-1]["epoch"]),
        seconds=round(sum(row["seconds"] for row in history), 2),
    )


def run_trial(config: dict[str, Any], task: Task) -> None:
    """Trains a trial until its next rung, and reports the result; the function that Ray Tune runs.

    Args:
        config: Holds the `Assignment` under the key "assignment".
        task: What all trials of the stage have in common.
    """
    # On a busy machine, the next trial in this process may have to wait for the end of this one.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    assignment: Assignment = config["assignment"]
    try:
        update = _train(assignment, task)
    except (UserError, TrainingDivergedError, WorkersLostError) as error:
        update = TrialUpdate(state="failed", reason=str(error))
    except StoppedError:
        update = TrialUpdate()
    except (JobFailedError, OSError) as error:
        # The trial is not at fault: the sweep ends, and its next driver resumes the trial.
        _report(TrialReport(failure=str(error)))
        return
    except Exception as error:
        traceback.print_exc()
        update = TrialUpdate(state="failed", reason=_reason(error))
    finally:
        _free_memory()
    _report(TrialReport(update=update))


def _report(report: TrialReport) -> None:
    # As text, since Ray Tune takes nested results apart.
    tune.report({REPORT: report.model_dump_json(exclude_unset=True)})


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"Out of memory: {first} {MORE_MEMORY}"
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors())
    return f"{type(error).__name__}: {first}"


def _free_memory() -> None:
    """Frees memory for the next trial that runs in this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # glibc keeps freed blocks: gigabytes after a few trials.
        with suppress(AttributeError, OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _train(assignment: Assignment, task: Task) -> TrialUpdate:
    trial, last = assignment.trial, assignment.stop_after_epoch
    settings = task.job.trial(trial.params, seed=trial.seed)
    run = task.sweep.run(trial)
    if not trial.epochs:
        refusal = _cost(settings, task.job)
        if refusal.state:
            return refusal
        _report(TrialReport(update=refusal))
    if not run.can_resume(settings, fingerprint=task.index.fingerprint):
        run.start(settings, fingerprint=task.index.fingerprint)
    progress = run.newest_progress()
    driver = _TrialDriver(assignment.assigned, progress.history if progress else [])
    source = Source.of(settings, task.index, task.shared)
    with Heartbeat(task.mailbox, trial.number, "its start") as heartbeat:
        if task.plan.training.workers == 1:
            driver.log = run.events
            _train_here(settings, run, source, heartbeat, driver, last, task)
        else:
            _train_workers(settings, run, source, heartbeat, driver, last, task)
    if len(driver.history) < last:
        return TrialUpdate()
    if last < settings.train.epochs:
        return reached(driver.history)
    task.token.check()
    export_best(run, settings, task.index)
    return reached(driver.history).model_copy(update={"state": "done"})


def _cost(settings: Settings, job: SweepJob) -> TrialUpdate:
    """Size and cost of a trial's network, and whether a budget refuses it."""
    found = model_cost(settings)
    update = TrialUpdate(parameters=found.parameters, gflops=round(found.gflops, 3))
    budget = job.sweep.budget
    for name, value, limit, unit in (
        ("parameters", found.parameters / 1e6, budget.parameters, "M parameters"),
        ("gflops", found.gflops, budget.gflops, "GFLOPs"),
    ):
        if limit and value > limit:
            reason = f"{value:.1f} {unit}, more than sweep.budget.{name} = {limit:g}"
            return update.model_copy(update={"state": "refused", "reason": reason})
    return update


def _train_here(
    settings: Settings,
    run: Run,
    source: Source,
    heartbeat: Heartbeat,
    driver: _TrialDriver,
    stop_after_epoch: int,
    task: Task,
) -> None:
    training = task.plan.training
    worker = make_worker(
        settings,
        run=run,
        source=source,
        group=ProcessGroup(0, 1, torch.device(training.device)),
        driver=driver,
        heartbeat=heartbeat,
        token=task.token,
        plan=training,
        workers_on_node=task.plan.together,
    )
    steps = source.steps_per_epoch
    train_loop(settings, steps_per_epoch=steps, runtime=worker, stop_after_epoch=stop_after_epoch)


def _train_workers(
    settings: Settings,
    run: Run,
    source: Source,
    heartbeat: Heartbeat,
    driver: _TrialDriver,
    stop_after_epoch: int,
    task: Task,
) -> None:
    def stop() -> bool:
        # Called again and again while training goes on; the watchdog of the workers sees whether they make progress.
        heartbeat.report("its workers")
        return heartbeat.stop

    fit(
        settings,
        run=run,
        source=source,
        plan=task.plan.training,
        watch=driver.emit,
        lease=Lease(task.token, task.sweep.place),
        stop_after_epoch=stop_after_epoch,
        stop=stop,
        together=task.plan.together,
    )
