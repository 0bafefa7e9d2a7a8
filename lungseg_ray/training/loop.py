"""The training loop in plain PyTorch; whoever runs it brings the data, the other workers and the storage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.learner import STEP_SUMS, Learner, NotFiniteError
from lungseg_ray.training.precision import Precision, fastest_precision
from lungseg_ray.training.runtime import Request, Runtime

_ADVICE = "Lower optim.lr, set optim.clip, or use train.precision = fp32, under another runs.name."


class TrainingDivergedError(JobFailedError):
    """The loss is no longer a number; the message names the step and the images."""


def train_loop(settings: Settings, *, steps_per_epoch: int, runtime: Runtime, until: int | None = None) -> Progress:
    """Trains until the last epoch, early stopping, or until it is asked to stop, from wherever the run had come.

    Args:
        settings: of the run.
        steps_per_epoch: whole global batches in an epoch.
        runtime: data, workers and storage.
        until: epochs after which it leaves off, as if cut there; by default the last.

    Returns:
        How far the run came, with its history.

    Raises:
        TrainingDivergedError: if too many losses are not finite.
        JobFailedError: if a checkpoint cannot be kept.
    """
    device, epochs = runtime.device, settings.train.epochs
    until = min(until or epochs, epochs)
    runtime.doing("the checkpoint to go on from")
    kept = runtime.restore()
    # The first batches are made ready while precision is probed and the model is built.
    with closing(runtime.train(step=kept.progress.step if kept else 0, epochs=until)) as batches:
        runtime.doing("the probe of the precision")
        progress = kept.progress if kept else _start(settings, runtime)
        runtime.doing("the model to be built")
        learner = Learner(
            settings=settings if not kept else _without_weights(settings),
            device=device,
            precision=progress.precision,  # type: ignore[arg-type]
            total_steps=epochs * steps_per_epoch,
            wrap=runtime.wrap,
            sum=runtime.sum,
        )
        if kept:
            learner.load(kept)
        runtime.tell(
            {
                "event": "start",
                "epoch": progress.epoch,
                "step": progress.step,
                "number": progress.step - progress.epoch * steps_per_epoch,
                "steps": steps_per_epoch,
                "precision": learner.precision,
                "device": str(device),
                "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
                "frozen": learner.frozen,
                "best": progress.best["val_loss"] if progress.history else float("inf"),
            }
        )
        while progress.epoch < until and not progress.stops_early(settings.train.early_stop):
            progress, stop = _epoch(learner, runtime, batches, progress, steps=steps_per_epoch)
            if stop:
                runtime.flush()
                runtime.tell({"event": "stopped", "step": progress.step, "epoch": progress.epoch})
                return progress
        runtime.doing("the last checkpoint to be written")
        runtime.flush()
    return progress


def _start(settings: Settings, runtime: Runtime) -> Progress:
    choice = settings.train.precision
    precision = fastest_precision(settings, runtime.device) if choice == "auto" else choice
    # Each worker timed its own; all follow rank 0.
    names: list[Precision] = ["fp32", "bf16", "fp16"]
    chosen = torch.tensor(names.index(precision), device=runtime.device)
    runtime.share([chosen])
    return Progress(epoch=0, step=0, precision=names[int(chosen)])


def _without_weights(settings: Settings) -> Settings:
    """A run that goes on has its weights already; the encoder's need not be fetched again."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"weights": "none"})})


def _epoch(
    learner: Learner, runtime: Runtime, batches: Iterator[Batch], progress: Progress, *, steps: int
) -> tuple[Progress, bool]:
    """Trains on what is left of an epoch, and validates; keeps checkpoints on the way and in the end.

    Returns:
        How far the run has come, and whether it is to stop, which may be before the epoch's end.
    """
    epoch, every = progress.epoch, learner.settings.checkpoint.every_steps
    rates = learner.schedule.rates()
    partial = progress.partial or {
        **dict.fromkeys((*STEP_SUMS, "skipped", "waited", "saving", "seconds"), 0.0),
        "lr": rates["decoder"],
        "encoder_lr": rates.get("encoder", rates["decoder"]),
    }
    sums = torch.tensor([partial[key] for key in STEP_SUMS], dtype=torch.float64)
    waited, skipped, saving = partial["waited"], 0, partial["saving"]
    start = told = time.perf_counter()

    def reached(step: int) -> Progress:
        nonlocal saving
        saving += runtime.waited()
        now = {
            **partial,
            **dict(zip(STEP_SUMS, sums.tolist(), strict=True)),
            "skipped": partial["skipped"] + skipped,
            "waited": waited,
            "saving": saving,
            "seconds": partial["seconds"] + time.perf_counter() - start,
        }
        return replace(
            progress,
            step=step,
            partial=now,
            skipped=progress.skipped + skipped,
            workers=runtime.world_size,
            threads=torch.get_num_threads(),
        )

    for step in range(progress.step, (epoch + 1) * steps):
        number = step - epoch * steps + 1
        place = f"step {step + 1}, {number} of {steps} in epoch {epoch + 1}"
        runtime.doing(f"the images of {place}")
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        runtime.doing(place)
        try:
            sums += learner.step(batch)
        except NotFiniteError as error:
            skipped += 1
            _pass_over(error, batch, progress.skipped + skipped, learner.settings, runtime)
        now = time.perf_counter()
        if now - told > 0.5 or number in (1, steps):
            told = now
            loss = float(sums[0] / sums[3])
            runtime.tell({"event": "step", "epoch": epoch + 1, "number": number, "steps": steps, "loss": loss})
        wish = runtime.wish()
        # After the last step the epoch's own checkpoint follows.
        if number < steps and (wish or (every and (step + 1) % every == 0)):
            here = reached(step + 1)
            runtime.save(learner.content(here), spare=not wish)
            if wish == Request.STOP:
                return here, True
    done = reached((epoch + 1) * steps)
    row = _finished(learner, runtime, done)
    done = replace(done, epoch=epoch + 1, history=[*progress.history, row], partial={})
    runtime.save(learner.content(done), spare=False)
    runtime.tell({"event": "epoch", "row": row})
    return done, runtime.wish() == Request.STOP


def _pass_over(error: NotFiniteError, batch: Batch, skipped: int, settings: Settings, runtime: Runtime) -> None:
    """Tells of a step that is left out; every worker calls it.

    Raises:
        TrainingDivergedError: if more are left out than may be.
    """
    names = runtime.gather(error.image_ids) or runtime.gather(batch.image_ids)
    text = f"The {error.what} at step {batch.step + 1}. Images: {', '.join(names)}."
    if skipped > settings.train.max_skipped:
        allowed = f"{skipped} such step(s), {settings.train.max_skipped} allowed (train.max_skipped)."
        raise TrainingDivergedError(f"{text} {allowed} {_ADVICE}")
    runtime.tell({"event": "note", "text": f"{text} The step is left out, {skipped} of {settings.train.max_skipped}."})


def _finished(learner: Learner, runtime: Runtime, progress: Progress) -> dict[str, float]:
    """Validates after the last step of an epoch.

    Returns:
        The epoch's row of the history.
    """
    start = time.perf_counter()
    sums = progress.partial
    # BatchNorm's statistics drift apart between workers; all validate, and keep, those of rank 0.
    runtime.share([*learner.model.buffers(), *(learner.evaluated.buffers() if learner.average else ())])
    validation = ValidationSums(
        classes=learner.settings.corpus.classes,
        dice_weight=learner.settings.loss.dice,
        bce_weight=learner.settings.loss.bce,
    )
    learner.validate(_noted(runtime.validation(), runtime, progress.epoch + 1), validation)
    validation.load(runtime.sum(validation.as_tensor()))
    found = validation.result()
    if not math.isfinite(found["loss"]):
        raise TrainingDivergedError(
            f"The validation loss is {found['loss']} after epoch {progress.epoch + 1}. {_ADVICE}"
        )
    learner.schedule.after_epoch(found["loss"])
    waited = float(runtime.sum(torch.tensor([sums["waited"]], dtype=torch.float64))) / runtime.world_size
    images = max(sums["images"], 1.0)
    return {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "loss": sums["loss"] / images,
        "loss_dice": sums["loss_dice"] / images,
        "loss_bce": sums["loss_bce"] / images,
        **{f"val_{key}": value for key, value in found.items()},
        "lr": sums["lr"],
        "encoder_lr": sums["encoder_lr"],
        "skipped": sums["skipped"],
        "images_per_second": sums["images"] / sums["seconds"],
        "data_wait_share": waited / sums["seconds"],
        "checkpoint_wait": sums["saving"],
        "train_seconds": sums["seconds"],
        "seconds": sums["seconds"] + time.perf_counter() - start,
    }


def _noted(batches: Iterator[Batch], runtime: Runtime, epoch: int) -> Iterator[Batch]:
    runtime.doing(f"the validation images after epoch {epoch}")
    for number, batch in enumerate(batches, start=1):
        runtime.doing(f"validation batch {number} after epoch {epoch}")
        yield batch
    runtime.doing(f"the other workers' validation after epoch {epoch}")
