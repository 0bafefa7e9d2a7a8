"""Runs the training loop on Ray Train workers, and continues when some of them are lost."""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from lungseg_ray.cluster.planning import TrainingPlan
from lungseg_ray.cluster.watchdog import Watchdog, free_resources
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.feed.stream import Source
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import Lease, LeaseToken
from lungseg_ray.storage import retry
from lungseg_ray.training.events import Event, Failed, FailureKind, Note, Stopped
from lungseg_ray.training.loop import TrainingDivergedError, train_loop
from lungseg_ray.workers.entry import TASK, Losses, start
from lungseg_ray.workers.mailbox import Heartbeat, Mailbox, Messages, Pulse, mailbox
from lungseg_ray.workers.process_group import ProcessGroup
from lungseg_ray.workers.record import record
from lungseg_ray.workers.signals import stop_signals
from lungseg_ray.workers.supervise import Supervisor
from lungseg_ray.workers.worker import make_worker

LAST_WORD_SECONDS = 20.0
"""Seconds for which the driver waits for the other workers after one has failed or stopped."""
PREEMPTION_LOOK_SECONDS = 5.0
"""Seconds between two looks for a notice of preemption."""
START_SECONDS = 120.0
"""Seconds for which workers that start ask the mailbox for an answer."""


class _Trainer(TorchTrainer):
    """A trainer without processes that it does not need, which would start beside the workers and delay them.

    It has no data sets for a manager of data sets. The placement group of the workers ends with the controller, which
    owns it; Ray Train has another process that asks every second whether the controller is alive.
    """

    def _create_default_callbacks(self) -> list[Any]:
        without = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, without)]


class WorkersLostError(JobFailedError):
    """Workers are lost again and again at the same step."""


_FAILURES: dict[FailureKind, type[UserError | JobFailedError]] = {
    "user": UserError,
    "job": JobFailedError,
    "diverged": TrainingDivergedError,
    "workers_lost": WorkersLostError,
}


@dataclass
class _TrainDriver:
    """The driver as a Ray Train worker sees it."""

    mailbox: Mailbox
    group: ProcessGroup
    max_failures: int
    _looked: float = field(default_factory=time.monotonic)
    _preempted: bool = False

    def emit(self, event: Event) -> None:
        if self.group.rank == 0 or isinstance(event, Failed):
            self.mailbox.put(self.group.rank, event, wait=isinstance(event, Failed | Stopped))

    def on_start(self, step: int) -> None:
        # A mailbox that does not answer in time is asked again: the machine of the driver may be busy.
        before = retry(
            lambda: self.mailbox.workers_start(step, self.group.world_size),
            seconds=START_SECONDS,
            trouble=ray.exceptions.GetTimeoutError,
        )
        if before > self.max_failures:
            raise WorkersLostError(_lost_too_often(before, self.max_failures))

    def preemption_check_due(self) -> bool:
        due = self.group.rank == 0 and time.monotonic() - self._looked > PREEMPTION_LOOK_SECONDS
        if due:
            self._looked = time.monotonic()
        return due

    def preempted(self) -> bool:
        # Asking Ray is a barrier of all workers.
        noticed = ray.train.get_preemption_info() is not None
        new, self._preempted = noticed and not self._preempted, noticed
        return new


@dataclass(frozen=True)
class _Task:
    """What each Ray Train worker is given.

    Attributes:
        settings: The settings of the run.
        run: The folder of the run.
        source: The data.
        plan: How CPUs and GPUs are assigned.
        mailbox: The mailbox of the driver.
        token: Shows that the driver holds the run.
        stop_after_epoch: The epoch after which the workers leave off; None for the last.
        together: The number of trainings that share the cores of a node.
    """

    settings: Settings
    run: Run
    source: Source
    plan: TrainingPlan
    mailbox: Mailbox
    token: LeaseToken
    stop_after_epoch: int | None
    together: int

    def __call__(self) -> None:
        """Trains as one worker."""
        settings = self.settings
        context = ray.train.get_context()
        group = ProcessGroup(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
        driver = _TrainDriver(self.mailbox, group, settings.train.max_failures)
        with Heartbeat(self.mailbox, group.rank, "the worker's start") as heartbeat:
            worker = make_worker(
                settings,
                run=self.run,
                source=self.source,
                group=group,
                driver=driver,
                heartbeat=heartbeat,
                token=self.token,
                plan=self.plan,
                workers_on_node=context.get_local_world_size() * self.together,
            )
            try:
                train_loop(
                    settings,
                    steps_per_epoch=self.source.steps_per_epoch,
                    runtime=worker,
                    stop_after_epoch=self.stop_after_epoch,
                )
            except (UserError, JobFailedError) as error:
                # The worker ends without an exception, since a worker that Ray starts again would meet the same.
                if worker.writer:
                    # The checkpoint that is being written may be the last good one.
                    worker.writer.flush()
                last = worker.writer.last if worker.writer else None
                text = str(error)
                if isinstance(error, JobFailedError):
                    text += f"\nThe last good checkpoint: {last or 'none yet'}. The same command resumes from there."
                worker.emit(Failed(text, _kind_of(error)))


def _kind_of(error: UserError | JobFailedError) -> FailureKind:
    return next(kind for kind, known in reversed(_FAILURES.items()) if isinstance(error, known))


def _lost_too_often(times: int, allowed: int) -> str:
    return (
        f"Workers were lost {times} times in a row without reaching another checkpoint "
        f"(train.max_failures = {allowed}). Mend what ends them, or lower checkpoint.every_steps "
        "if it is nodes that come and go."
    )


def fit(
    settings: Settings,
    *,
    run: Run,
    source: Source,
    plan: TrainingPlan,
    watch: Callable[[Event], None],
    lease: Lease,
    stop_after_epoch: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    together: int = 1,
) -> None:
    """Trains on a running Ray cluster, from the newest checkpoint of the run to its end.

    Workers that are lost are started again from the last checkpoint. SIGINT and SIGTERM save a checkpoint and stop; a
    second SIGINT stops at once. What happens is kept in the event log of the run.

    Args:
        settings: The settings of the run.
        run: The folder of the run.
        source: The data.
        plan: How CPUs and GPUs are assigned.
        watch: Called with every event.
        lease: The lease of the run.
        stop_after_epoch: The epoch after which to leave off; by default the last.
        stop: Asked again and again; once it is true, the workers save and stop as after a SIGTERM.
        together: The number of trainings that share the cores of a node.

    Raises:
        UserError: For a mistake of the user's, such as a run whose checkpoints cannot be used.
        JobFailedError: If the loss diverges, nothing makes progress, workers are lost again and again, the storage
            fails for too long, or another driver has taken over.
        StoppedError: If a signal asked for it.
        ray.train.TrainingFailedError: For any other reason that ends the workers.
    """
    least = settings.train.min_workers
    with mailbox() as box, tempfile.TemporaryDirectory(prefix="lungseg-ray-") as scratch, stop_signals() as received:
        scaling = ScalingConfig(
            num_workers=(least, settings.train.workers) if least else plan.workers,
            use_gpu=plan.device == "cuda",
            resources_per_worker={"GPU": 1} if plan.device == "cuda" else {"CPU": plan.cpus_per_worker},
        )
        # Checkpoints are written by our own code, with checksums, into the folder of the run. Ray is told of none.
        running = RunConfig(
            name=run.place.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Losses(box)],
        )
        task = ray.put(_Task(settings, run, source, plan, box, lease.token, stop_after_epoch, together))
        trainer = _Trainer(start, train_loop_config={TASK: task}, scaling_config=scaling, run_config=running)
        try:
            _Follower(settings, run, watch, received, stop).follow(trainer, box, lease)
        except (UserError, JobFailedError, StoppedError) as error:
            # A driver that has lost the run must not write into its folder.
            with suppress(JobFailedError, OSError):
                lease.token.check()
                run.events.append("stopped" if isinstance(error, StoppedError) else "failed", str(error))
            raise


@dataclass
class _Follower:
    """Follows a trainer, and hands on what its workers send."""

    settings: Settings
    run: Run
    watch: Callable[[Event], None]
    received: list[int]
    stop: Callable[[], bool]
    _end: Stopped | Failed | None = None
    _last_word: float = math.inf

    def follow(self, trainer: TorchTrainer, box: Mailbox, lease: Lease) -> None:
        """Runs the trainer until it ends; raises what ended it, as `fit`."""
        watchdog = Watchdog(
            self.settings.train.stall_seconds,
            lambda text: self._hand_on(Note(text, "stalled")),
            setting="train.stall_seconds",
        )
        supervisor = Supervisor(
            name="fit",
            mailbox=box,
            lease=lease,
            watchdog=watchdog,
            should_stop=self._should_stop,
            on_stop=lambda: self._hand_on(Note("Stopping after this step; a second Ctrl-C stops at once.", "stopping")),
            on_messages=self._on_messages,
            waiting_for=_waiting_for,
            leave=_end_controller,
        )
        error = supervisor.run(trainer.fit)
        if isinstance(self._end, Failed):
            raise _FAILURES[self._end.kind](self._end.text)
        if isinstance(self._end, Stopped):
            text = f"Stopped after step {self._end.step}; the checkpoint is saved, and the same command resumes."
            raise StoppedError(text, self.received[0])
        if error:
            raise error

    def _should_stop(self) -> bool:
        if not self.received and self.stop():
            self.received.append(signal.SIGTERM)
        return bool(self.received)

    def _on_messages(self, messages: Messages, alive: bool) -> bool:
        for rank, event in messages.events:
            if isinstance(event, Stopped | Failed):
                # Every worker may report the end; rank 0 knows which checkpoint is the last.
                if rank == 0 or self._end is None:
                    self._end = event
                self._last_word = min(self._last_word, time.monotonic())
            else:
                self._hand_on(event)
        up = any(not pulse.silent for pulse in messages.pulses.values())
        if self.received and not up and self._end is None and alive:
            raise StoppedError("Stopped while no worker was up; the same command resumes.", self.received[0])
        if messages.losses > self.settings.train.max_failures + 1:
            raise WorkersLostError(_lost_too_often(messages.losses, self.settings.train.max_failures))
        # The other workers may wait for one that has failed alone; they end with the job.
        return time.monotonic() > self._last_word + LAST_WORD_SECONDS

    def _hand_on(self, event: Event) -> None:
        record(self.run.events, event)
        self.watch(event)


def _end_controller() -> None:
    """Ends Ray Train's controller, for which `TorchTrainer.fit` waits."""
    job = ray.get_runtime_context().get_job_id()
    actors = ray._private.state.state.actor_table(None, ray.JobID.from_hex(job), "ALIVE")
    for actor_id, actor in actors.items():
        if actor["ActorClassName"].endswith("TrainController"):
            # Ray refuses to end that of another trial, of which this process has no handle.
            with suppress(Exception):
                ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)


def _waiting_for(pulses: Mapping[int, Pulse]) -> str:
    if not pulses:
        return f"workers to start; {free_resources()}"
    return "; ".join(
        f"rank {rank}: {pulse.activity}" + (f", without a sign of life for {pulse.age:.0f} s" if pulse.silent else "")
        for rank, pulse in sorted(pulses.items())
    )
