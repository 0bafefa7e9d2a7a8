"""A model with its optimiser, schedule and averaged weights, and one step of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics import optim
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.model import build_model
from lungseg_ray.training.precision import Precision

UNUSED_PROBE_SIZE = 64
STEP_SUMS = ("loss", "loss_dice", "loss_bce", "images")
"""What `Learner.step` returns, added up over an epoch."""


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

    def content(self, progress: Progress) -> checkpoint.Checkpoint:
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
