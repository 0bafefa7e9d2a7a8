"""The training loop in plain PyTorch. Data, the other workers and checkpoints come from a `Runtime`."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.device import matrix_rate, used_memory
from lungseg_ray.training.events import EpochDone, Note, Started, StepDone, Stopped
from lungseg_ray.training.learner import STEP_SUMS, Learner, Step, StepResult
from lungseg_ray.training.precision import Precision, fastest_precision
from lungseg_ray.training.runtime import Request, Runtime

_THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
"""The thresholds of which the best on the validation images may be chosen."""
_ADVICE = "Lower optim.lr, set optim.clip, or use train.precision = fp32, under another runs.name."


class TrainingDivergedError(JobFailedError):
    """The loss is no longer a finite number. The message names the step and the images."""


def train_loop(
    settings: Settings, *, steps_per_epoch: int, runtime: Runtime, stop_after_epoch: int | None = None
) -> Progress:
    """Trains until the last epoch, until early stopping, or until a stop is requested, from the newest checkpoint on.

    Args:
        settings: The settings of the run.
        steps_per_epoch: The number of whole global batches in an epoch.
        runtime: Data, other workers and checkpoints.
        stop_after_epoch: The epoch after which the loop ends as if it were interrupted there; by default the last.

    Returns:
        The progress of the run, with its history.

    Raises:
        TrainingDivergedError: If too many losses are not finite.
        JobFailedError: If a checkpoint cannot be written.
    """
    began, device, epochs = time.time(), runtime.device, settings.train.epochs
    last_epoch = min(stop_after_epoch or epochs, epochs)
    runtime.report_activity("the checkpoint to go on from")
    checkpoint = runtime.restore()
    # The first batches are prepared while the precision is probed and the model is built.
    with closing(runtime.train(step=checkpoint.progress.step if checkpoint else 0, epochs=last_epoch)) as batches:
        runtime.report_activity("the probe of the precision")
        progress = checkpoint.progress if checkpoint else _start(settings, runtime)
        runtime.report_activity("the model to be built")
        learner = Learner(
            settings=settings,
            device=device,
            precision=progress.precision,  # type: ignore[arg-type]
            total_steps=epochs * steps_per_epoch,
            wrap=runtime.wrap,
            all_reduce_sum=runtime.all_reduce_sum,
            # The weights of a resumed run come from the checkpoint.
            pretrained=checkpoint is None,
        )
        if checkpoint:
            learner.load(checkpoint)
        runtime.emit(
            Started(
                epoch=progress.epoch,
                step=progress.step,
                step_in_epoch=progress.step - progress.epoch * steps_per_epoch,
                steps_per_epoch=steps_per_epoch,
                workers=runtime.world_size,
                device=str(device),
                precision=learner.precision,
                threads=torch.get_num_threads(),
                matrix_rate=matrix_rate(device, learner.precision),
                parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
                frozen=tuple(learner.frozen),
                best=progress.best if progress.history else None,
                began=began,
                time=time.time(),
            )
        )
        for text in learner.notes:
            runtime.emit(Note(text))
        while progress.epoch < last_epoch and not progress.stops_early(settings.train.early_stop):
            progress, stop = _train_epoch(learner, runtime, batches, progress, steps=steps_per_epoch)
            if stop:
                runtime.flush()
                runtime.emit(Stopped(step=progress.step, epoch=progress.epoch))
                return progress
        runtime.report_activity("the last checkpoint to be written")
        runtime.flush()
    return progress


def _start(settings: Settings, runtime: Runtime) -> Progress:
    choice = settings.train.precision
    precision = fastest_precision(settings, runtime.device) if choice == "auto" else choice
    # Every worker timed its own device; all of them take the choice of rank 0.
    names: list[Precision] = ["fp32", "bf16", "fp16"]
    chosen = torch.tensor(names.index(precision), device=runtime.device)
    runtime.broadcast([chosen])
    return Progress(epoch=0, step=0, precision=names[int(chosen)])


def _train_epoch(
    learner: Learner, runtime: Runtime, batches: Iterator[Batch], progress: Progress, *, steps: int
) -> tuple[Progress, bool]:
    """Trains for the rest of an epoch and validates; saves checkpoints within the epoch and at its end.

    Returns:
        The progress of the run, and whether it is to stop, which may be before the end of the epoch.
    """
    epoch, every = progress.epoch, learner.settings.checkpoint.every_steps
    made = _Epoch(learner, runtime, progress, steps)
    for step in range(progress.step, (epoch + 1) * steps):
        request = made.next_step(batches, step)
        within = step + 1 < (epoch + 1) * steps
        is_due = bool(every) and (step + 1) % every == 0
        if request or is_due or not within:
            # What is saved or validated is known to be finite.
            request = max(request, made.wait())
        if request == Request.SAVE:
            which = f"of step {step + 1}" if within else f"of epoch {epoch + 1}, after its validation"
            _note_preemption(runtime, which, step + 1)
        # The last step of an epoch is followed by the epoch's own checkpoint.
        if within and (request or is_due):
            here = made.progress(step + 1)
            runtime.save(learner.content(here), skip_if_busy=not request)
            if request == Request.STOP:
                return here, True
    done = made.progress((epoch + 1) * steps)
    row = _validate(learner, runtime, done)
    done = replace(done, epoch=epoch + 1, history=[*progress.history, row], partial={})
    runtime.save(learner.content(done), skip_if_busy=False)
    runtime.emit(EpochDone(row))
    wishes = torch.tensor(runtime.wishes(), dtype=torch.float64)
    request = runtime.agree(runtime.all_reduce_sum(wishes).tolist())
    if request == Request.SAVE:
        _note_preemption(runtime, f"of epoch {epoch + 1}", done.step)
    return done, request == Request.STOP


class _Epoch:
    """The steps of an epoch, and the sums over them, which `Progress.partial` keeps where the epoch is interrupted.

    Args:
        learner: The learner, whose learning rates are those of the epoch if it begins here.
        runtime: The runtime.
        progress: The progress of the run before the next step.
        steps: The number of steps in an epoch.
    """

    def __init__(self, learner: Learner, runtime: Runtime, progress: Progress, steps: int) -> None:
        rates = learner.schedule.rates()
        self._learner, self._runtime = learner, runtime
        self._before = progress
        self._steps = steps
        self._partial = progress.partial or {
            **dict.fromkeys((*STEP_SUMS, "skipped", "waited", "saving", "seconds"), 0.0),
            "lr": rates["decoder"],
            "encoder_lr": rates.get("encoder", rates["decoder"]),
        }
        self._sums = {key: self._partial[key] for key in STEP_SUMS}
        self._skipped, self._waited, self._saving = 0, self._partial["waited"], self._partial["saving"]
        self._start = time.perf_counter()
        self._reported = 0.0
        self._not_known: deque[Step] = deque()

    def next_step(self, batches: Iterator[Batch], step: int) -> Request:
        """Makes a step, and takes in what became of an earlier one, for which a GPU does not have to wait.

        Args:
            batches: The batches, of which the next one is taken.
            step: The step, from 0.

        Returns:
            What the loop is asked to do.

        Raises:
            TrainingDivergedError: If more steps are left out than are allowed.
        """
        place = f"step {step + 1}, {self._number(step)} of {self._steps} in epoch {self._before.epoch + 1}"
        self._runtime.report_activity(f"the images of {place}")
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        self._runtime.report_activity(place)
        self._not_known.append(self._learner.step(batch, self._runtime.wishes()))
        return self._settle(self._learner.late)

    def wait(self) -> Request:
        """Waits until all steps are made; returns and raises what `next_step` does."""
        return self._settle(0)

    def _settle(self, left: int) -> Request:
        request = Request.CONTINUE
        while len(self._not_known) > left:
            result = self._not_known.popleft().result()
            if result.not_finite:
                self._skipped += 1
                _skip(result, self._before.skipped + self._skipped, self._learner.settings, self._runtime)
            else:
                for key in STEP_SUMS:
                    self._sums[key] += result.sums[key]
            self._report(self._number(result.batch.step))
            request = max(request, self._runtime.agree(result.agreed))
        return request

    def _number(self, step: int) -> int:
        return step - self._before.epoch * self._steps + 1

    def _report(self, number: int) -> None:
        if time.perf_counter() - self._reported > 0.5 or number in (1, self._steps):
            self._reported = time.perf_counter()
            loss = self._sums["loss"] / self._sums["images"] if self._sums["images"] else math.nan
            seconds = self._seconds()
            event = StepDone(
                self._before.epoch + 1,
                number,
                self._steps,
                loss=loss,
                images_per_second=self._sums["images"] / seconds,
                data_wait_share=self._waited / seconds,
                time=time.time(),
            )
            self._runtime.emit(event)

    def _seconds(self) -> float:
        """Returns the seconds that the epoch has taken so far."""
        return self._partial["seconds"] + time.perf_counter() - self._start

    def progress(self, step: int) -> Progress:
        """Returns the progress of the run within the epoch.

        Args:
            step: The number of optimiser steps made.
        """
        self._saving += self._runtime.checkpoint_wait_seconds()
        partial = {
            **self._partial,
            **self._sums,
            "skipped": self._partial["skipped"] + self._skipped,
            "waited": self._waited,
            "saving": self._saving,
            "seconds": self._seconds(),
        }
        return replace(
            self._before,
            step=step,
            partial=partial,
            skipped=self._before.skipped + self._skipped,
            workers=self._runtime.world_size,
            threads=torch.get_num_threads(),
        )


def _note_preemption(runtime: Runtime, which: str, step: int) -> None:
    text = f"A node is about to be taken away: saving the checkpoint {which}."
    runtime.emit(Note(text, "preemption", step=step))


def _skip(result: StepResult, skipped: int, settings: Settings, runtime: Runtime) -> None:
    """Reports a step that is left out. Every worker calls it.

    Raises:
        TrainingDivergedError: If more steps are left out than are allowed.
    """
    ids, number = result.batch.image_ids, result.batch.step + 1
    names = runtime.all_gather([] if result.own_loss_is_finite else ids) or runtime.all_gather(ids)
    text = f"The {result.not_finite} at step {number}. Images: {', '.join(names)}."
    if skipped > settings.train.max_skipped:
        allowed = f"{skipped} such step(s), {settings.train.max_skipped} allowed (train.max_skipped)."
        raise TrainingDivergedError(f"{text} {allowed} {_ADVICE}")
    text += f" The step is left out, {skipped} of {settings.train.max_skipped}."
    runtime.emit(Note(text, "step_skipped", step=number))


def _validate(learner: Learner, runtime: Runtime, progress: Progress) -> dict[str, float]:
    """Validates after the last step of an epoch.

    Returns:
        The epoch's row of the history.

    Raises:
        TrainingDivergedError: If the validation loss is not finite.
        JobFailedError: If there is no image by which the epochs are to be ranked.
    """
    start = time.perf_counter()
    sums = progress.partial
    # The BatchNorm statistics of the workers drift apart; all workers validate, and save, those of rank 0.
    runtime.broadcast([*learner.model.buffers(), *(learner.evaluated.buffers() if learner.average else ())])
    settings = learner.settings
    threshold = settings.model.threshold
    validation = ValidationSums(
        classes=settings.corpus.classes,
        dice_weight=settings.loss.dice,
        bce_weight=settings.loss.bce,
        label_weights=settings.loss.label_weights,
        threshold=0.5 if threshold == "validation" else threshold,
        candidates=_THRESHOLDS if threshold == "validation" and settings.corpus.classes == 1 else (),
        device=runtime.device,
    )
    learner.validate(_reported(runtime.validation(), runtime, progress.epoch + 1), validation)
    validation.load(runtime.all_reduce_sum(validation.as_tensor()))
    found = validation.result()
    if not math.isfinite(found["loss"]):
        raise TrainingDivergedError(
            f"The validation loss is {found['loss']} after epoch {progress.epoch + 1}. {_ADVICE}"
        )
    learner.schedule.after_epoch(found["loss"])
    own = [sums["waited"], used_memory(learner.device)]
    waited, used = runtime.all_reduce_sum(torch.tensor(own, dtype=torch.float64))
    images = max(sums["images"], 1.0)
    by = settings.train.best_by
    if by not in found:
        raise JobFailedError(f"train.best_by is {by}, and no image of the validation split has the structure.")
    return {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "loss": sums["loss"] / images,
        "loss_dice": sums["loss_dice"] / images,
        "loss_bce": sums["loss_bce"] / images,
        **{f"val_{key}": value for key, value in found.items()},
        **({"score": found[by]} if by != "loss" else {}),
        "lr": sums["lr"],
        "encoder_lr": sums["encoder_lr"],
        "skipped": sums["skipped"],
        "images_per_second": sums["images"] / sums["seconds"],
        "data_wait_share": float(waited) / runtime.world_size / sums["seconds"],
        "checkpoint_wait": sums["saving"],
        "train_seconds": sums["seconds"],
        "seconds": sums["seconds"] + time.perf_counter() - start,
        "memory_gib": float(used) / runtime.world_size / 2**30,
    }


def _reported(batches: Iterator[Batch], runtime: Runtime, epoch: int) -> Iterator[Batch]:
    runtime.report_activity(f"the validation images after epoch {epoch}")
    for number, batch in enumerate(batches, start=1):
        runtime.report_activity(f"validation batch {number} after epoch {epoch}")
        yield batch
    runtime.report_activity(f"the other workers' validation after epoch {epoch}")
