"""Runs the training loop on Ray Train workers."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import ray
import ray.train
import torch
import torch.distributed
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

from lungseg_ray import checkpoint, resources
from lungseg_ray.batch import Batch
from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.events import watched
from lungseg_ray.feed import Feed, ReadAhead, Source
from lungseg_ray.loop import TrainingDivergedError, train_loop
from lungseg_ray.run import Run
from lungseg_ray.storage import Location

CACHED_VALIDATION_BYTES = 1 << 30
"""Validation images, made ready once, are kept by each worker up to this size."""


@dataclass
class _Worker:
    """One Ray Train worker as the loop sees it."""

    run: Run
    source: Source
    feed: Feed
    device: torch.device
    rank: int
    world_size: int
    mailbox: Any

    def train(self, *, step: int, epochs: int) -> ReadAhead:
        return self.feed.train(step=step, epochs=epochs)

    def validation(self) -> Iterator[Batch]:
        size = self.source.size**2 * (self.source.index.corpus.channels + 1)
        if self.source.index.count("val") * size > CACHED_VALIDATION_BYTES * self.world_size:
            return self.feed.validation()
        return iter(self._validation)

    @cached_property
    def _validation(self) -> list[Batch]:
        return list(self.feed.validation())

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return values
        there = values.to(self.device)
        torch.distributed.all_reduce(there)
        return there.to(values.device)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def restore(self) -> checkpoint.Checkpoint | None:
        choice: list[Any] = [None]
        if self.rank == 0:
            try:
                found, wrong = self.run.newest_checkpoint()
                for reason in wrong:
                    self.tell({"event": "note", "text": f"Checkpoint passed over: {reason}"})
                choice = [found]
            except UserError as error:
                choice = [error]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(choice, src=0)
        if isinstance(choice[0], UserError):
            raise choice[0]
        place: Location | None = choice[0]
        return checkpoint.read_from(place) if place else None

    def save(self, content: Callable[[], checkpoint.Checkpoint], row: dict[str, float]) -> None:
        metrics = {"val_loss": row["val_loss"], "epoch": row["epoch"]}
        name = checkpoint.name(int(row["step"]))
        if self.rank:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
            made = content()
            checkpoint.write(Path(folder), made)
            kept = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=kept, checkpoint_dir_name=name)
        self.run.write_history(made.progress.history)

    def tell(self, event: dict[str, Any]) -> None:
        if self.rank == 0:
            facts = {"time": time.time(), "workers": self.world_size, "threads": torch.get_num_threads()}
            self.mailbox.put.remote({**facts, **event})


def _work(task: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    settings: Settings = task["settings"]
    layout: resources.Layout = task["layout"]
    context = ray.train.get_context()
    # Ray sets OMP_NUM_THREADS from the worker's logical CPUs; the cores of the node are what counts.
    threads = settings.train.threads or max(resources.cores() // context.get_local_world_size(), 1)
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)
    resources.quiet_data()
    device = ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    source: Source = task["source"]
    worker = _Worker(
        run=task["run"],
        source=source,
        feed=Feed(source, rank, world_size, layout.data_tasks, settings.feed.ahead),
        device=device,
        rank=rank,
        world_size=world_size,
        mailbox=task["mailbox"],
    )
    train_loop(settings, steps_per_epoch=source.steps_per_epoch, runtime=worker)


def fit(
    settings: Settings,
    *,
    run: Run,
    source: Source,
    layout: resources.Layout,
    watch: Callable[[dict[str, Any]], None],
) -> None:
    """Trains on a running Ray cluster, from wherever the run had come to its end.

    Args:
        settings: of the run.
        run: where it is kept.
        source: what is fed.
        layout: who gets what.
        watch: told of every step and epoch while it runs, from another thread.

    Raises:
        UserError: for what a user can mend: no usable checkpoint, a diverged loss.
        ray.train.TrainingFailedError: for anything else that ends the workers.
    """
    run.tidy(keep=settings.checkpoint.keep)
    scaling = ScalingConfig(
        num_workers=layout.workers,
        use_gpu=layout.device == "cuda",
        resources_per_worker={"GPU": 1} if layout.device == "cuda" else {"CPU": layout.cpus_per_worker},
    )
    running = RunConfig(
        name=run.place.name,
        storage_path=run.place.uri.rsplit("/", 1)[0],
        failure_config=FailureConfig(max_failures=0),
        checkpoint_config=CheckpointConfig(
            num_to_keep=settings.checkpoint.keep,
            checkpoint_score_attribute="val_loss",
            checkpoint_score_order="min",
        ),
    )
    with watched(watch) as mailbox:
        task = {"settings": settings, "run": run, "source": source, "layout": layout, "mailbox": mailbox}
        before = signal.getsignal(signal.SIGINT)
        try:
            TorchTrainer(_work, train_loop_config=task, scaling_config=scaling, run_config=running).fit()
        except ray.train.TrainingFailedError as error:
            for cause in getattr(error, "worker_failures", {}).values():
                inner = getattr(cause, "cause", cause)
                if isinstance(inner, UserError | TrainingDivergedError):
                    raise UserError(str(inner)) from error
            raise
        except SystemExit:
            # Ray answers Ctrl-C by leaving with status 0, and keeps the handler for what comes after.
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, before)
