"""Runs the training loop on Ray Train workers, and goes on when some are lost."""

from __future__ import annotations

import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import ray
import ray.train
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from lungseg_ray.cluster.planning import TrainingPlan, cores, data_tasks
from lungseg_ray.cluster.session import available, quiet_data
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import Lease
from lungseg_ray.training.loop import train_loop
from lungseg_ray.workers.mailbox import Heartbeat, Mailbox, Pulse, mailbox
from lungseg_ray.workers.signals import signals
from lungseg_ray.workers.watchdog import Watchdog
from lungseg_ray.workers.worker import Worker

LOOK_SECONDS = 0.25
LAST_WORD_SECONDS = 20.0
PREEMPTION_LOOK_SECONDS = 5.0


class WorkersLostError(JobFailedError):
    """Workers are lost again and again at the same place."""


@dataclass
class _TrainWorker(Worker):
    """A worker of Ray Train.

    Attributes:
        mailbox: of the driver.
    """

    mailbox: Mailbox = field(kw_only=True)
    _looked: float = field(default_factory=time.monotonic)
    _preempted: Any = None

    def begin(self, step: int) -> None:
        before = self.mailbox.begin(step, self.world_size)
        if before > self.settings.train.max_failures:
            raise WorkersLostError(_lost_too_often(self.settings, before))

    def due(self) -> bool:
        return self.rank == 0 and time.monotonic() - self._looked > PREEMPTION_LOOK_SECONDS

    def notice(self) -> bool:
        # The look is a barrier of Ray's.
        self._looked = time.monotonic()
        notice = ray.train.get_preemption_info()
        new, self._preempted = notice is not None and self._preempted is None, notice
        if new:
            self.note("A node is about to be taken away: saving a checkpoint.")
        return new

    def tell(self, event: dict[str, Any], *, any_rank: bool = False) -> None:
        if self.rank == 0 or any_rank:
            facts = {
                "time": time.time(),
                "rank": self.rank,
                "workers": self.world_size,
                "threads": torch.get_num_threads(),
            }
            self.mailbox.put({**facts, **event}, wait=event["event"] in ("failed", "stopped"))


def _work(task: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    settings: Settings = task["settings"]
    layout: TrainingPlan = task["layout"]
    context = ray.train.get_context()
    # Ray sets OMP_NUM_THREADS from the worker's logical CPUs; the cores of the node are what counts.
    threads = settings.train.threads or max(cores() // context.get_local_world_size(), 1)
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)
    quiet_data()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    source: Source = task["source"]
    cpus, _ = available()
    # After a node is lost there may be fewer CPUs than the layout was made for.
    tasks = min(layout.data_tasks, data_tasks(cpus, world_size, layout.cpus_per_worker))
    patience = settings.storage.patience_seconds
    with Heartbeat(task["mailbox"], rank, Pulse("the worker's start", 0)) as heart:
        worker = _TrainWorker(
            settings=settings,
            run=task["run"],
            source=source,
            feed=Feed(source, rank, world_size, tasks, settings.feed.ahead, patience),
            device=ray.train.torch.get_device(),
            rank=rank,
            world_size=world_size,
            mailbox=task["mailbox"],
            heart=heart,
            ticket=task["ticket"],
        )
        try:
            train_loop(settings, steps_per_epoch=source.steps_per_epoch, runtime=worker, until=task["until"])
        except (UserError, JobFailedError) as error:
            # Workers end in peace, since another start would meet the same again.
            last = worker.keeper.last if worker.keeper else None
            text = f"{error}\nThe last good checkpoint: {last or 'none yet'}. The same command goes on from there."
            worker.tell({"event": "failed", "text": text, "kind": type(error)}, any_rank=True)


class _Losses(UserCallback):
    """Tells of workers that are lost."""

    def __init__(self, box: Mailbox) -> None:
        self._mailbox = box

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        dead = {rank: error for rank, error in worker_exceptions.items() if isinstance(error, ray.exceptions.RayError)}
        # The others merely find that they cannot reach the one that died.
        reasons = [
            f"worker {rank} ({_first_line(error)})" for rank, error in sorted((dead or worker_exceptions).items())
        ]
        text = f"Lost {', '.join(reasons)}. Going on from the last checkpoint."
        self._mailbox.lost(text)


def _lost_too_often(settings: Settings, times: int) -> str:
    return (
        f"Workers were lost {times} times in a row without reaching another checkpoint "
        f"(train.max_failures = {settings.train.max_failures}). Mend what ends them, or lower checkpoint.every_steps "
        "if it is nodes that come and go."
    )


def _first_line(error: BaseException) -> str:
    inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None) or error
    return f"{type(inner).__name__}: {next(iter(str(inner).strip().splitlines()), '')}"[:200]


def fit(
    settings: Settings,
    *,
    run: Run,
    source: Source,
    layout: TrainingPlan,
    watch: Callable[[dict[str, Any]], None],
    lease: Lease,
    until: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains on a running Ray cluster, from wherever the run had come to its end.

    Workers that are lost are started again from the last checkpoint. SIGINT and SIGTERM save one and stop; a second
    SIGINT stops at once.

    Args:
        settings: of the run.
        run: where it is kept.
        source: what is fed.
        layout: who gets what.
        watch: told of every step and epoch while it runs.
        lease: the right to write the run.
        until: epochs after which it leaves off; by default the last.
        stop: asked again and again; once it is true, the workers save and stop as after a SIGTERM.

    Raises:
        UserError: for what a user can mend, such as checkpoints of which none is usable.
        JobFailedError: if the loss diverges, nothing moves any more, workers are lost again and again, storage fails
            for too long, or another driver has taken the run over.
        StoppedError: if a signal asked for it.
        ray.train.TrainingFailedError: for anything else that ends the workers.
    """
    run.tidy(keep=settings.checkpoint.keep)
    least = settings.train.min_workers
    with mailbox() as box, tempfile.TemporaryDirectory(prefix="lungseg-ray-") as scratch, signals() as asked:
        scaling = ScalingConfig(
            num_workers=(least, settings.train.workers) if least else layout.workers,
            use_gpu=layout.device == "cuda",
            resources_per_worker={"GPU": 1} if layout.device == "cuda" else {"CPU": layout.cpus_per_worker},
        )
        # Checkpoints are ours: they carry checksums, and lie in the run's folder. Ray keeps a list of none.
        running = RunConfig(
            name=run.place.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[_Losses(box)],
        )
        task: dict[str, Any] = {"settings": settings, "run": run, "source": source, "layout": layout, "mailbox": box}
        task |= {"ticket": lease.ticket, "until": until}
        trainer = TorchTrainer(_work, train_loop_config=task, scaling_config=scaling, run_config=running)
        ended = _follow(settings, trainer, box, asked, watch, lease, stop)
    if ended["event"] == "failed":
        raise ended["kind"](ended["text"])
    if ended["event"] == "stopped":
        raise StoppedError(
            f"Stopped after step {ended['step']}; the checkpoint is saved, and the same command goes on.", asked[0]
        )


def _follow(
    settings: Settings,
    trainer: TorchTrainer,
    box: Mailbox,
    asked: list[int],
    watch: Callable[[dict[str, Any]], None],
    lease: Lease,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Runs a trainer in a thread, and hands on what its workers tell.

    Returns:
        The event that ended the training; `{"event": "done"}` if it came to its end.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    # In a thread of its own Ray does not answer signals, and this one is free to look after the rest.
    thread = threading.Thread(target=work, name="fit", daemon=True)
    thread.start()
    watchdog = Watchdog(settings.train.stall_seconds, _noting(watch))
    ended: dict[str, Any] = {"event": "done"}
    last_word = math.inf
    pulses: dict[int, Pulse] = {}
    losses = 0
    told = False
    alive = True
    while alive:
        thread.join(LOOK_SECONDS)
        # What came before the end is still handed on.
        # A worker that has said its last word alone leaves others that wait for it; they end with the job.
        alive = thread.is_alive() and time.monotonic() < last_word + LAST_WORD_SECONDS
        if not asked and stop():
            asked.append(signal.SIGTERM)
        if asked and not told:
            told = True
            box.stop()
            watch({"event": "note", "text": "Stopping after this step; a second Ctrl-C stops at once."})
        lease.check()
        try:
            events, pulses, losses = box.take()
        except ray.exceptions.GetTimeoutError:
            events = []
        except ray.exceptions.RayError as error:
            raise JobFailedError(
                f"Ray is gone on this machine ({_first_line(error)}). What was saved is safe; the same command goes on."
            ) from error
        for event in events:
            if event["event"] in ("failed", "stopped"):
                # Rank 0 knows which checkpoint is the last.
                ended = event if event["rank"] == 0 or ended["event"] == "done" else ended
                last_word = min(last_word, time.monotonic())
            else:
                watch(event)
        if asked and not pulses and ended["event"] == "done" and alive:
            raise StoppedError("Stopped while no worker was up; the same command goes on.", asked[0])
        if losses > settings.train.max_failures + 1:
            raise WorkersLostError(_lost_too_often(settings, losses))
        moves = {rank: pulse.moves for rank, pulse in pulses.items()}
        watchdog.look(moves, now=time.monotonic(), waiting_for=partial(_waiting_for, pulses))
    if errors and ended["event"] == "done":
        raise errors[0]
    return ended


def _noting(watch: Callable[[dict[str, Any]], None]) -> Callable[[str], None]:
    return lambda text: watch({"event": "note", "text": text})


def _waiting_for(pulses: dict[int, Pulse]) -> str:
    if not pulses:
        free = ray.available_resources()
        return (
            "workers to start; free in the cluster: "
            f"{free.get('CPU', 0):g} CPU(s), {free.get('GPU', 0):g} GPU(s) (`ray status` says who has the others)"
        )
    return "; ".join(f"rank {rank}: {pulse.doing}" for rank, pulse in sorted(pulses.items()))
