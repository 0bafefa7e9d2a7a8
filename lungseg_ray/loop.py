"""The training loop in plain PyTorch; whoever runs it brings the data, the other workers and the storage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal, Protocol

import torch
from torch import nn

from lungseg_ray import checkpoint, models, optim
from lungseg_ray.batch import Batch
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.losses import SegmentationLoss
from lungseg_ray.metrics import ValidationSums

Precision = Literal["fp32", "bf16", "fp16"]
PROBE_SIZE = 128
PROBE_BATCH = 2
UNUSED_PROBE_SIZE = 64
_SUMS = ("loss", "loss_dice", "loss_bce", "images")
"""What `Learner.step` returns, added up over an epoch."""
_ADVICE = "Lower optim.lr, set optim.clip, or use train.precision = fp32, under another runs.name."


class TrainingDivergedError(JobFailedError):
    """The loss is no longer a number; the message names the step and the images."""


class NotFiniteError(Exception):
    """A step that must not be made, on any worker, because a loss or the gradient is not a number.

    Attributes:
        what: is not a number.
        image_ids: of this worker's batch, if its own loss is not one.
    """

    def __init__(self, what: str, image_ids: list[str]) -> None:
        super().__init__(what)
        self.what = what
        self.image_ids = image_ids


class Wish(IntEnum):
    """What is asked of a run between two steps."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Stream(Iterator[Batch], Protocol):
    """Batches that are prepared in the background until it is closed."""

    def close(self) -> None:
        """Ends the preparation."""


class Runtime(Protocol):
    """What the loop needs from whoever runs it.

    Attributes:
        rank: of this worker.
        world_size: workers.
        device: to compute on.
    """

    rank: int
    world_size: int
    device: torch.device

    def train(self, *, step: int, epochs: int) -> Stream:
        """This worker's batches from a global step to the end of the last epoch."""

    def validation(self) -> Iterator[Batch]:
        """This worker's share of the validation images; the same images each time."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model that averages its gradients over the workers."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of float64 values over the workers."""

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites tensors with those of rank 0."""

    def gather(self, names: list[str]) -> list[str]:
        """The names of all workers."""

    def restore(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to go on from, the same on every worker; None at the start of a run."""

    def save(self, content: checkpoint.Checkpoint, *, spare: bool) -> None:
        """Keeps a checkpoint in the background; every worker calls it, and rank 0 alone keeps.

        Args:
            content: what is kept.
            spare: it may be left out while the one before is still on its way.
        """

    def waited(self) -> float:
        """Seconds that this process has waited for checkpoints since the last call."""

    def flush(self) -> None:
        """Waits until the last checkpoint is kept.

        Raises:
            JobFailedError: on every worker alike, if it cannot be.
        """

    def wish(self) -> Wish:
        """What is asked of the run, the same on every worker.

        Raises:
            JobFailedError: on every worker alike, if a checkpoint cannot be kept.
        """

    def doing(self, what: str) -> None:
        """Lets it be known that this worker has come this far, and what it does next."""

    def tell(self, event: dict[str, Any]) -> None:
        """Lets whoever watches know."""


@dataclass
class Learner:
    """A model with all that changes while it learns.

    Attributes:
        settings: of the run.
        device: it computes on.
        precision: of forward and backward passes; the loss is always float32.
        total_steps: of the optimiser in the whole run, for schedules by step.
        wrap: makes the model that averages its gradients over the workers.
        sum: sums values over the workers.
        frozen: names of parameters that get no gradient with this pair of architecture and encoder.
    """

    settings: Settings
    device: torch.device
    precision: Precision
    total_steps: int
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    sum: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, optimisation = self.settings, self.settings.optim
        self.model = build_model(settings).to(self.device)
        self.layout = torch.contiguous_format
        if settings.train.channels_last:
            self.layout = models.memory_format(self.model, device=self.device)
        self.model = self.model.to(memory_format=self.layout)
        self.frozen = models.freeze_unused_parameters(
            self.model, in_channels=settings.corpus.channels, size=UNUSED_PROBE_SIZE
        )
        self.loss = SegmentationLoss(
            classes=settings.corpus.classes, dice_weight=settings.loss.dice, bce_weight=settings.loss.bce
        )
        self.optimizer = optim.build_optimizer(
            self.model,
            name=optimisation.name,
            lr=optimisation.lr,
            encoder_lr=optimisation.encoder_lr,
            weight_decay=optimisation.weight_decay,
            encoder_weight_decay=optimisation.encoder_weight_decay,
            lookahead_k=optimisation.lookahead_k,
            lookahead_alpha=optimisation.lookahead_alpha,
        )
        self.schedule = optim.build_scheduler(
            self.optimizer,
            kind=optimisation.schedule,
            total_steps=self.total_steps,
            warmup_steps=round(optimisation.warmup * self.total_steps)
            if optimisation.schedule in ("one_cycle", "cosine")
            else 0,
            factor=optimisation.factor,
            patience=optimisation.patience,
        )
        decay = settings.train.average
        self.average = optim.WeightAverage(self.model, decay=decay) if decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.training_model = self.wrap(self.model)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept: the averaged one, where weights are averaged."""
        return self.average.module if self.average else self.model

    def forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 (n, k, h, w) of images uint8 (n, c, h, w)."""
        inputs = images.to(self.device, torch.float32, non_blocking=True, memory_format=self.layout).div_(255)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(self.device.type, dtype=kind, enabled=self.precision != "fp32"):
            logits: torch.Tensor = model(inputs)
        return logits.float()

    def step(self, batch: Batch) -> torch.Tensor:
        """One step of the optimiser on one batch.

        Returns:
            float64 (4,): sums over the images of all workers of total loss, Dice loss and BCE, and their number.

        Raises:
            NotFiniteError: on every worker, if any loss or the gradient is not finite; the weights stay.
        """
        # What a step draws follows from (seed, step) alone, so that a run that goes on draws what it would have drawn.
        torch.manual_seed(self.settings.train.seed * 1_000_003 + batch.step)
        self.training_model.train()
        parts = self.settings.train.accumulate
        # BatchNorm takes in what it sees at once; a step that is left out must not leave a trace there.
        buffers = list(self.model.buffers()) if self.settings.train.max_skipped else []
        before = [buffer.clone() for buffer in buffers]
        sums = torch.zeros(4, dtype=torch.float64)
        pieces = zip(batch.images.chunk(parts), batch.masks.chunk(parts), strict=True)
        for number, (images, masks) in enumerate(pieces, start=1):
            hold = getattr(self.training_model, "no_sync", nullcontext) if number < parts else nullcontext
            with hold():
                logits = self.forward(self.training_model, images)
                losses = self.loss(logits, masks.to(self.device, non_blocking=True))
                self.scaler.scale(losses.total / parts).backward()
            values = torch.stack([part.detach() for part in (losses.total, losses.dice, losses.bce)]).double().cpu()
            sums += torch.cat([values, torch.ones(1, dtype=torch.float64)]) * len(images)
        # All workers add up all losses, so that all make the step or none does.
        own, sums = sums, self.sum(sums)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # With fp16, gradients overflow now and then; the scaler leaves such a step out by itself.
        if not torch.isfinite(sums).all() or not (self.precision == "fp16" or torch.isfinite(norm)):
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            self._leave_out()
            what = f"loss is {float(sums[0])}" if not torch.isfinite(sums).all() else f"norm of the gradient is {norm}"
            raise NotFiniteError(what, [] if torch.isfinite(own).all() else batch.image_ids)
        if self.settings.optim.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.optim.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step()
        if self.average:
            self.average.update(self.model)
        return sums

    def _leave_out(self) -> None:
        """Passes over a step: the schedule counts it, the scaler lowers its factor, nothing else changes."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.schedule.after_step()

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch], sums: ValidationSums) -> None:
        """Adds the figures of batches to `sums`, with the model that is kept and without its DDP wrapper.

        DDP's forward would broadcast buffers, and wait for ever for a worker that has fewer validation images.
        """
        model = self.evaluated.eval()
        for batch in batches:
            sums.update(self.forward(model, batch.images).cpu(), batch.masks)

    def content(self, progress: checkpoint.Progress) -> checkpoint.Checkpoint:
        """What must be kept to go on from here."""
        average = self.average.state_dict() if self.average else None
        return checkpoint.Checkpoint(
            weights=self.model.state_dict(),
            average=average["module"] if average else None,
            training={
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average_updates": average["updates"] if average else 0,
            },
            progress=progress,
        )

    def load(self, content: checkpoint.Checkpoint) -> None:
        """Goes on from a checkpoint."""
        self.model.load_state_dict(content.weights)
        self.optimizer.load_state_dict(content.training["optimizer"])
        self.schedule.load_state_dict(content.training["schedule"])
        self.scaler.load_state_dict(content.training["scaler"])
        if self.average and content.average is not None:
            self.average.load_state_dict({"module": content.average, "updates": content.training["average_updates"]})


def build_model(settings: Settings, *, weights: str | None = None) -> nn.Module:
    """The network of a run with its first weights, which follow from the seed.

    Args:
        settings: of the run.
        weights: in place of `model.weights`.
    """
    torch.manual_seed(settings.train.seed)
    return models.build(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        encoder_weights=settings.model.weights if weights is None else weights,
    )


def fastest_precision(settings: Settings, device: torch.device) -> Precision:
    """Chooses fp32 or bf16 by timing steps of each at a small size.

    bf16 is several times faster where the processor has instructions for it, and ten times slower where it has none.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    size = min(settings.feed.size, PROBE_SIZE)
    model = build_model(settings, weights="none")
    layout = models.memory_format(model, device=device)
    model = model.to(memory_format=layout)
    images = torch.rand(PROBE_BATCH, settings.corpus.channels, size, size).to(memory_format=layout)
    kinds: tuple[Precision, ...] = ("bf16", "fp32")
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    # In turns, and the quickest of each counts: whatever else runs on the machine can only slow a step down.
    for kind in kinds * 4:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            model(images).float().mean().backward()
        seconds[kind].append(time.perf_counter() - start)
    return min(kinds, key=lambda kind: min(seconds[kind]))


def train_loop(
    settings: Settings, *, steps_per_epoch: int, runtime: Runtime, until: int | None = None
) -> checkpoint.Progress:
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


def _start(settings: Settings, runtime: Runtime) -> checkpoint.Progress:
    choice = settings.train.precision
    precision = fastest_precision(settings, runtime.device) if choice == "auto" else choice
    # Each worker timed its own; all follow rank 0.
    names: list[Precision] = ["fp32", "bf16", "fp16"]
    chosen = torch.tensor(names.index(precision), device=runtime.device)
    runtime.share([chosen])
    return checkpoint.Progress(epoch=0, step=0, precision=names[int(chosen)])


def _without_weights(settings: Settings) -> Settings:
    """A run that goes on has its weights already; the encoder's need not be fetched again."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"weights": "none"})})


def _epoch(
    learner: Learner, runtime: Runtime, batches: Iterator[Batch], progress: checkpoint.Progress, *, steps: int
) -> tuple[checkpoint.Progress, bool]:
    """Trains on what is left of an epoch, and validates; keeps checkpoints on the way and in the end.

    Returns:
        How far the run has come, and whether it is to stop, which may be before the epoch's end.
    """
    epoch, every = progress.epoch, learner.settings.checkpoint.every_steps
    rates = learner.schedule.rates()
    partial = progress.partial or {
        **dict.fromkeys((*_SUMS, "skipped", "waited", "saving", "seconds"), 0.0),
        "lr": rates["decoder"],
        "encoder_lr": rates.get("encoder", rates["decoder"]),
    }
    sums = torch.tensor([partial[key] for key in _SUMS], dtype=torch.float64)
    waited, skipped, saving = partial["waited"], 0, partial["saving"]
    start = told = time.perf_counter()

    def reached(step: int) -> checkpoint.Progress:
        nonlocal saving
        saving += runtime.waited()
        now = {
            **partial,
            **dict(zip(_SUMS, sums.tolist(), strict=True)),
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
            if wish == Wish.STOP:
                return here, True
    done = reached((epoch + 1) * steps)
    row = _finished(learner, runtime, done)
    done = replace(done, epoch=epoch + 1, history=[*progress.history, row], partial={})
    runtime.save(learner.content(done), spare=False)
    runtime.tell({"event": "epoch", "row": row})
    return done, runtime.wish() == Wish.STOP


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


def _finished(learner: Learner, runtime: Runtime, progress: checkpoint.Progress) -> dict[str, float]:
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
