"""A model with its optimiser, schedule and averaged weights, and one step of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics import optim
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.model import build_model
from lungseg_ray.training.precision import Precision

UNUSED_PROBE_SIZE = 64
"""Height and width, in pixels, of the images of the probe that finds parameters without a gradient."""
STEP_SUMS = ("loss", "loss_dice", "loss_bce", "images")
"""The sums that `Learner.step` returns, in their order."""


class NotFiniteError(Exception):
    """A step that no worker may make, because a loss or the gradient of one of them is not finite.

    Attributes:
        what: The quantity that is not finite, with its value.
        image_ids: The images of this worker's batch, if its own loss is not finite; else empty.
    """

    def __init__(self, what: str, image_ids: list[str]) -> None:
        super().__init__(what)
        self.what = what
        self.image_ids = image_ids


@dataclass
class Learner:
    """A model with its optimiser, learning-rate schedule, gradient scaler and averaged weights.

    Attributes:
        settings: The settings of the run.
        device: The device to compute on.
        precision: The precision of forward and backward passes; the loss is always float32.
        total_steps: The number of optimiser steps in the whole run, for schedules by step.
        wrap: Returns the model that averages its gradients over the workers.
        all_reduce_sum: Returns the sum of float64 values over the workers.
        pretrained: Whether the model starts with the weights that the settings name; otherwise with random ones.
        frozen: Names of the parameters that get no gradient with this pair of architecture and encoder.
    """

    settings: Settings
    device: torch.device
    precision: Precision
    total_steps: int
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    pretrained: bool = True
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, optimisation = self.settings, self.settings.optim
        self.model = build_model(settings, pretrained=self.pretrained).to(self.device)
        self.memory_format = torch.contiguous_format
        if settings.train.channels_last:
            self.memory_format = models.memory_format(self.model, device=self.device)
        self.model = self.model.to(memory_format=self.memory_format)
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
        """The model that is validated and exported: the averaged one, where weights are averaged."""
        return self.average.module if self.average else self.model

    def forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Computes logits.

        Args:
            model: The model, wrapped or not.
            images: (N, C, H, W) uint8.

        Returns:
            (N, K, H, W) float32.
        """
        inputs = images.to(self.device, torch.float32, non_blocking=True, memory_format=self.memory_format).div_(255)
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        with torch.autocast(self.device.type, dtype=kind, enabled=self.precision != "fp32"):
            logits: torch.Tensor = model(inputs)
        return logits.float()

    def step(self, batch: Batch) -> torch.Tensor:
        """Makes one optimiser step on one batch. Every worker calls it.

        Args:
            batch: This worker's slice of the global batch.

        Returns:
            (4,) float64, the `STEP_SUMS`: sums over the images of all workers of the total loss, the Dice loss and the
            BCE loss, and the number of images.

        Raises:
            NotFiniteError: On every worker, if a loss or the gradient of any worker is not finite. Weights and
                buffers stay as they were.
        """
        # Random numbers of a step (dropout) depend on (seed, step) alone, so that a resumed run draws the same ones.
        torch.manual_seed(self.settings.train.seed * 1_000_003 + batch.step)
        self.training_model.train()
        parts = self.settings.train.accumulate
        # The forward pass updates the BatchNorm statistics; a step that is skipped must leave no trace there.
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
        # Every worker sees the losses of all workers, so that all of them make the step or none does.
        own, sums = sums, self.all_reduce_sum(sums)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # With fp16, gradients overflow occasionally; the scaler skips such a step by itself.
        if not torch.isfinite(sums).all() or not (self.precision == "fp16" or torch.isfinite(norm)):
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            self._skip()
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

    def _skip(self) -> None:
        """Skips a step: the schedule counts it and the scaler lowers its factor; nothing else changes."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.schedule.after_step()

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch], sums: ValidationSums) -> None:
        """Adds the validation figures of batches to `sums`, computed with the model that is exported.

        The model is used without its DDP wrapper: the forward pass of DDP broadcasts buffers, and would wait for ever
        for a worker that has fewer validation batches.

        Args:
            batches: Validation batches.
            sums: Sums to add to.
        """
        model = self.evaluated.eval()
        for batch in batches:
            sums.update(self.forward(model, batch.images).cpu(), batch.masks)

    def content(self, progress: Progress) -> checkpoint.Checkpoint:
        """Returns everything that a checkpoint must contain to resume from here.

        Args:
            progress: The progress of the run.
        """
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
        """Restores the state of a checkpoint.

        Args:
            content: The checkpoint.

        Raises:
            JobFailedError: If it is of another network, or of another optimiser.
        """
        training = content.training
        try:
            self.model.load_state_dict(content.weights)
            self.optimizer.load_state_dict(training["optimizer"])
            self.schedule.load_state_dict(training["schedule"])
            self.scaler.load_state_dict(training["scaler"])
            if self.average and content.average is not None:
                self.average.load_state_dict({"module": content.average, "updates": training["average_updates"]})
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise JobFailedError(
                f"The newest checkpoint does not fit the network and the optimiser of this run ({error}). Remove it to "
                "resume from the one before."
            ) from error
