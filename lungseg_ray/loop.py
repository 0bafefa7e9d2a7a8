"""The training loop in plain PyTorch; whoever runs it brings the data, the other workers and the storage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from lungseg_ray import checkpoint, models, optim
from lungseg_ray.batch import Batch
from lungseg_ray.config import Settings
from lungseg_ray.losses import SegmentationLoss
from lungseg_ray.metrics import ValidationSums

Precision = Literal["fp32", "bf16", "fp16"]
PROBE_SIZE = 128
PROBE_BATCH = 2
UNUSED_PROBE_SIZE = 64
_ADVICE = "Lower optim.lr, set optim.clip, or use train.precision = fp32, under another runs.name."


class TrainingDivergedError(Exception):
    """The loss is no longer a number; the message names the step and the images."""


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

    def restore(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to go on from, the same on every worker; None at the start of a run."""

    def save(self, content: Callable[[], checkpoint.Checkpoint], row: dict[str, float]) -> None:
        """Keeps a checkpoint after an epoch; every worker calls it, and rank 0 alone makes the content."""

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
        frozen: names of parameters that get no gradient with this pair of architecture and encoder.
    """

    settings: Settings
    device: torch.device
    precision: Precision
    total_steps: int
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, optimisation = self.settings, self.settings.optim
        self.model = build_model(settings).to(self.device)
        if settings.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
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
        layout = torch.channels_last if self.settings.train.channels_last else torch.contiguous_format
        inputs = images.to(self.device, torch.float32, non_blocking=True, memory_format=layout).div_(255)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(self.device.type, dtype=kind, enabled=self.precision != "fp32"):
            logits: torch.Tensor = model(inputs)
        return logits.float()

    def step(self, batch: Batch) -> torch.Tensor:
        """One step of the optimiser on one batch.

        Returns:
            float64 (4,): sums over the images of total loss, Dice loss and BCE, and the number of images.

        Raises:
            TrainingDivergedError: if the loss is not finite; the weights are those before the step.
        """
        # What a step draws follows from (seed, step) alone, so that a run that goes on draws what it would have drawn.
        torch.manual_seed(self.settings.train.seed * 1_000_003 + batch.step)
        self.training_model.train()
        parts = self.settings.train.accumulate
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
        if not torch.isfinite(sums).all():
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingDivergedError(
                f"The loss is {float(sums[0])} at step {batch.step}. Images: {', '.join(batch.image_ids)}. {_ADVICE}"
            )
        if self.settings.optim.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step()
        if self.average:
            self.average.update(self.model)
        return sums

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
    model = build_model(settings, weights="none").to(memory_format=torch.channels_last)
    images = torch.rand(PROBE_BATCH, settings.corpus.channels, size, size).to(memory_format=torch.channels_last)
    kinds: tuple[Precision, ...] = ("bf16", "fp32")
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    # In turns, and the quickest of each counts: whatever else runs on the machine can only slow a step down.
    for kind in kinds * 4:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            model(images).float().mean().backward()
        seconds[kind].append(time.perf_counter() - start)
    return min(kinds, key=lambda kind: min(seconds[kind]))


def train_loop(settings: Settings, *, steps_per_epoch: int, runtime: Runtime) -> checkpoint.Progress:
    """Trains until the last epoch, or until early stopping, from wherever the run had come.

    Args:
        settings: of the run.
        steps_per_epoch: whole global batches in an epoch.
        runtime: data, workers and storage.

    Returns:
        How far the run came, with its history.

    Raises:
        TrainingDivergedError: if the loss is not finite.
    """
    device, epochs = runtime.device, settings.train.epochs
    kept = runtime.restore()
    # The first batches are made ready while precision is probed and the model is built.
    batches = runtime.train(step=kept.progress.step if kept else 0, epochs=epochs)
    progress = kept.progress if kept else _start(settings, runtime)
    learner = Learner(
        settings=settings if not kept else _without_weights(settings),
        device=device,
        precision=progress.precision,  # type: ignore[arg-type]
        total_steps=epochs * steps_per_epoch,
        wrap=runtime.wrap,
    )
    if kept:
        learner.load(kept)
    runtime.tell(
        {
            "event": "start",
            "epoch": progress.epoch,
            "step": progress.step,
            "precision": learner.precision,
            "device": str(device),
            "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
            "frozen": learner.frozen,
            "best": progress.best["val_loss"] if progress.history else float("inf"),
        }
    )
    try:
        for epoch in range(progress.epoch, epochs):
            if progress.stops_early(settings.train.early_stop):
                break
            row = _epoch(learner, runtime, batches, epoch=epoch, steps=steps_per_epoch)
            progress = checkpoint.Progress(
                epoch=epoch + 1,
                step=(epoch + 1) * steps_per_epoch,
                precision=learner.precision,
                history=[*progress.history, row],
            )
            done = progress
            runtime.save(lambda: learner.content(done), row)  # noqa: B023
            runtime.tell({"event": "epoch", "row": row})
    finally:
        batches.close()
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


def _epoch(learner: Learner, runtime: Runtime, batches: Iterator[Batch], *, epoch: int, steps: int) -> dict[str, float]:
    """Trains on one epoch and validates.

    Returns:
        The epoch's row of the history.
    """
    start = told = time.perf_counter()
    waited = 0.0
    sums = torch.zeros(4, dtype=torch.float64)
    rates = learner.schedule.rates()
    for number in range(1, steps + 1):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        sums += learner.step(batch)
        now = time.perf_counter()
        if now - told > 0.5 or number in (1, steps):
            told = now
            loss = float(sums[0] / sums[3])
            runtime.tell({"event": "step", "epoch": epoch + 1, "number": number, "steps": steps, "loss": loss})
    seconds = time.perf_counter() - start
    totals = runtime.sum(torch.cat([sums, torch.tensor([waited], dtype=torch.float64)]))
    # BatchNorm's statistics drift apart between workers; all validate, and keep, those of rank 0.
    runtime.share([*learner.model.buffers(), *(learner.evaluated.buffers() if learner.average else ())])
    validation = ValidationSums(
        classes=learner.settings.corpus.classes,
        dice_weight=learner.settings.loss.dice,
        bce_weight=learner.settings.loss.bce,
    )
    learner.validate(runtime.validation(), validation)
    validation.load(runtime.sum(validation.as_tensor()))
    found = validation.result()
    if not math.isfinite(found["loss"]):
        raise TrainingDivergedError(f"The validation loss is {found['loss']} after epoch {epoch + 1}. {_ADVICE}")
    learner.schedule.after_epoch(found["loss"])
    images = float(totals[3])
    return {
        "epoch": epoch + 1,
        "step": (epoch + 1) * steps,
        "loss": float(totals[0]) / images,
        "loss_dice": float(totals[1]) / images,
        "loss_bce": float(totals[2]) / images,
        **{f"val_{key}": value for key, value in found.items()},
        "lr": rates["decoder"],
        "encoder_lr": rates.get("encoder", rates["decoder"]),
        "images_per_second": images / seconds,
        "data_wait_share": float(totals[4]) / runtime.world_size / seconds,
        "train_seconds": seconds,
        "seconds": time.perf_counter() - start,
    }
