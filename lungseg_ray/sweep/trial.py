"""A trial as it runs on the cluster: the training loop in its own process, or through Ray Train's workers."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
import torch
from pydantic import ValidationError
from ray import tune

from lungseg_ray import models
from lungseg_ray.cluster.planning import TrialsPlan, cores
from lungseg_ray.cluster.session import quiet_data
from lungseg_ray.config import Settings, SweepJob
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.inference.export import export_best
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import Lease, LeaseToken
from lungseg_ray.run.progress import rank_epochs
from lungseg_ray.shards.format import ShardIndex
from lungseg_ray.sweep.ledger import Sweep, Trial
from lungseg_ray.training.loop import TrainingDivergedError, train_loop
from lungseg_ray.workers.fit import WorkersLostError, fit
from lungseg_ray.workers.mailbox import Heartbeat, Mailbox, Pulse
from lungseg_ray.workers.worker import Worker

SAID = "said"
MORE_MEMORY = "Lower feed.batch or sweep.concurrent, or raise train.accumulate or sweep.gpus_per_trial."


@dataclass(frozen=True)
class Task:
    """What all trials of a stage have in common.

    Attributes:
        job: of the sweep.
        sweep: its folder.
        index: of the shards.
        shared: whole shards in the object store, by file.
        layout: how trials share the cluster.
        mailbox: takes their pulses, and asks them to stop.
        ticket: of the driver that holds the sweep.
    """

    job: SweepJob
    sweep: Sweep
    index: ShardIndex
    shared: Mapping[str, Any]
    layout: TrialsPlan
    mailbox: Mailbox
    ticket: LeaseToken


@dataclass
class _Report:
    """Tells the driver what a trial has reached, in the fields of `Trial`."""

    dealt: float
    history: list[dict[str, float]]
    notes: list[str] = field(default_factory=list)
    started: bool = False

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            # Threads have notes, too, and only the trial's own may speak to Ray Tune: it comes with what is said next.
            self.notes.append(event["text"])
        elif event["event"] == "step":
            facts = {} if self.started else {"startup": round(time.time() - self.dealt, 2)}
            self.started = True
            if facts or self.notes:
                self.say(facts=facts)
        elif event["event"] == "epoch":
            # A group of workers that was lost may come to an epoch again.
            self.history = [*(row for row in self.history if row["epoch"] < event["row"]["epoch"]), event["row"]]
            self.say(facts=reached(self.history), row=event["row"])

    def say(self, **what: Any) -> None:
        notes, self.notes = self.notes, []
        _say(**what, notes=notes)


def reached(history: list[dict[str, float]]) -> dict[str, Any]:
    """What a history says of a trial, in the fields of `Trial`."""
    bests = [rank_epochs(history[:end])[0] for end in range(1, len(history) + 1)]
    if not bests:
        return {}
    return {
        "scores": [row["val_iou"] for row in bests],
        "val_loss": bests[-1]["val_loss"],
        "val_dice": bests[-1]["val_dice"],
        "best_epoch": int(bests[-1]["epoch"]),
        "seconds": round(sum(row["seconds"] for row in history), 2),
    }


@dataclass
class _TrialWorker(Worker):
    """The one worker of a trial, in the trial's own process."""

    report: _Report = field(kw_only=True)

    def tell(self, event: dict[str, Any]) -> None:
        self.report(event)


def run_trial(config: dict[str, Any], task: Task) -> None:
    """What Ray Tune runs: trains a trial until its next rung, and reports what came of it.

    Args:
        config: `trial`, as a dict; `until`, epochs; `dealt`, seconds since the epoch of the clock.
        task: of the stage.
    """
    # On a busy machine the next trial in this process may have to wait for the end of this one.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    trial = Trial.model_validate(config["trial"])
    try:
        facts = _train(trial, config["until"], config["dealt"], task)
    except (UserError, TrainingDivergedError, WorkersLostError) as error:
        facts = {"state": "failed", "reason": str(error)}
    except StoppedError:
        facts = {}
    except (JobFailedError, OSError) as error:
        # Not the trial's fault: the sweep ends, and its next driver goes on with the trial.
        _say(ends=str(error))
        return
    except Exception as error:
        traceback.print_exc()
        facts = {"state": "failed", "reason": _reason(error)}
    finally:
        _give_memory_back()
    _say(facts=facts)


def _say(**what: Any) -> None:
    """Tells the driver: `facts` (fields of `Trial`), the `row` of an epoch, `notes`, or why the sweep `ends`."""
    # As text, since Ray Tune takes nested results apart.
    tune.report({SAID: json.dumps(what)})


def _reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"Out of memory: {first} {MORE_MEMORY}"
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors())
    return f"{type(error).__name__}: {first}"


def _give_memory_back() -> None:
    """Leaves the process as the next trial that runs in it wants it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # glibc keeps what was freed in pieces: gigabytes after a few trials.
        with suppress(AttributeError, OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _train(trial: Trial, until: int, dealt: float, task: Task) -> dict[str, Any]:
    settings = task.job.trial(trial.params, seed=trial.seed)
    run = task.sweep.run(trial)
    if not trial.epochs:
        refusal = _cost(settings, task.job)
        if "state" in refusal:
            return refusal
        _say(facts=refusal)
    if not run.check(settings, fingerprint=task.index.fingerprint):
        run.start(settings, fingerprint=task.index.fingerprint)
    report = _Report(dealt, run.history())
    source = Source.of(settings, task.index, task.shared)
    with Heartbeat(task.mailbox, trial.number, Pulse("its start", 0)) as heart:
        if task.layout.training.workers == 1:
            _train_here(settings, run, source, heart, report, until, task)
        else:
            _train_workers(settings, run, source, heart, report, until, task)
    if len(report.history) < until:
        return {}
    if until < settings.train.epochs:
        return reached(report.history)
    task.ticket.check()
    export_best(run, settings, task.index)
    return {**reached(report.history), "state": "done"}


def _cost(settings: Settings, job: SweepJob) -> dict[str, Any]:
    """Size and cost of a trial's network, and whether a budget refuses it."""
    found = models.cost(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        size=settings.feed.size,
    )
    facts: dict[str, Any] = {"parameters": found.parameters, "gflops": round(found.gflops, 3)}
    budget = job.sweep.budget
    for name, value, limit, unit in (
        ("parameters", found.parameters / 1e6, budget.parameters, "M parameters"),
        ("gflops", found.gflops, budget.gflops, "GFLOPs"),
    ):
        if limit and value > limit:
            reason = f"{value:.1f} {unit}, more than sweep.budget.{name} = {limit:g}"
            return {**facts, "state": "refused", "reason": reason}
    return facts


def _train_here(
    settings: Settings, run: Run, source: Source, heart: Heartbeat, report: _Report, until: int, task: Task
) -> None:
    torch.set_num_threads(settings.train.threads or max(cores() // task.layout.together, 1))
    cv2.setNumThreads(0)
    quiet_data()
    training = task.layout.training
    worker = _TrialWorker(
        settings=settings,
        run=run,
        source=source,
        feed=Feed(source, 0, 1, training.data_tasks, settings.feed.ahead, settings.storage.patience_seconds),
        device=torch.device(training.device),
        rank=0,
        world_size=1,
        heart=heart,
        ticket=task.ticket,
        report=report,
    )
    train_loop(settings, steps_per_epoch=source.steps_per_epoch, runtime=worker, until=until)


def _train_workers(
    settings: Settings, run: Run, source: Source, heart: Heartbeat, report: _Report, until: int, task: Task
) -> None:
    def stop() -> bool:
        # Asked again and again while it goes on; that something moves is for the workers' own watchdog to see.
        heart.pulse = Pulse("its workers", heart.pulse.moves + 1)
        return heart.stop

    fit(
        settings,
        run=run,
        source=source,
        layout=task.layout.training,
        watch=report,
        lease=Lease(task.ticket, task.sweep.place),
        until=until,
        stop=stop,
    )
