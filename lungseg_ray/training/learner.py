"""A model with its optimiser, schedule and averaged weights, and one step of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics import optim
from lungseg_ray.numerics.inputs import scale_pixels
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.numerics.undo import Undo
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress
from lungseg_ray.text import shown
from lungseg_ray.training.model import build_model, probe_size
from lungseg_ray.training.precision import Precision, autocast

UNUSED_PROBE_SIZE = 64
"""Height and width, in pixels, of the images of the probe that finds parameters without a gradient."""
_LONGEST_REASON = 300
"""Characters that are shown of the message of a compiler."""
STEP_SUMS = ("loss", "loss_dice", "loss_bce", "images")
"""The sums of a step over the images of all workers: of the losses, and the number of images."""
MOST_OVERFLOWS = 20
"""Steps in a row whose gradient may overflow in fp16. The factor of the losses, 65536 at first, is halved by each."""


@dataclass(frozen=True)
class StepResult:
    """What became of a step.

    Attributes:
        batch: This worker's slice of the global batch.
        sums: The `STEP_SUMS`.
        agreed: The sums over all workers of what each of them gave to `Learner.step`.
        not_finite: Why no worker made the step: which loss or gradient is not finite, with its value; None if it was
            made.
        own_loss_is_finite: Whether the losses of this worker are finite.
    """

    batch: Batch
    sums: dict[str, float]
    agreed: list[float]
    not_finite: str | None
    own_loss_is_finite: bool


class Step:
    """A step that the device has been asked to make.

    Args:
        batch: This worker's slice of the global batch.
        values: The sums over all workers, then the norm of the gradient, whether the losses of this worker are finite,
            and whether all are; float64, on the device.
        overflows: With fp16, counts the steps in a row whose gradient is not finite, which is expected now and then.
    """

    def __init__(self, batch: Batch, values: torch.Tensor, *, overflows: Overflows | None) -> None:
        self._batch, self._overflows = batch, overflows
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def result(self) -> StepResult:
        """Waits until the step is made, and returns what became of it."""
        if self._copied:
            self._copied.synchronize()
        *shared, norm, own, finite = self._values.tolist()
        sums = dict(zip(STEP_SUMS, shared, strict=False))
        wrong = None
        if not finite:
            wrong = f"loss is {sums['loss']}"
        elif not math.isfinite(norm) and not (self._overflows and self._overflows.expected()):
            wrong = f"norm of the gradient is {norm}"
        elif self._overflows and math.isfinite(norm):
            self._overflows.in_a_row = 0
        return StepResult(self._batch, sums, shared[len(STEP_SUMS) :], wrong, bool(own))


@dataclass
class Overflows:
    """Steps in a row whose gradient is not finite in fp16.

    Attributes:
        in_a_row: Their number.
    """

    in_a_row: int = 0

    def expected(self) -> bool:
        """Counts one more step, and returns whether a smaller factor of the losses may still be all that is needed."""
        self.in_a_row += 1
        return self.in_a_row <= MOST_OVERFLOWS


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
        notes: Sentences for the user.
    """

    settings: Settings
    device: torch.device
    precision: Precision
    total_steps: int
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    pretrained: bool = True
    frozen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings, optimisation = self.settings, self.settings.optim
        self.model = build_model(settings, pretrained=self.pretrained).to(self.device)
        self.memory_format = torch.contiguous_format
        if settings.train.channels_last:
            self.memory_format = models.memory_format(self.model, device=self.device)
        self.model = self.model.to(memory_format=self.memory_format)
        self.frozen = models.freeze_unused_parameters(
            self.model,
            in_channels=settings.corpus.channels,
            size=probe_size(self.model, settings, UNUSED_PROBE_SIZE),
        )
        self.loss = SegmentationLoss(
            classes=settings.corpus.classes,
            dice_weight=settings.loss.dice,
            bce_weight=settings.loss.bce,
            label_weights=settings.loss.label_weights,
        ).to(self.device)
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
        if settings.train.compile:
            self._compile()
        self._overflows = Overflows() if self.precision == "fp16" else None
        self._undo = self._make_undo()

    def _compile(self) -> None:
        """Compiles the training model, unless a worker cannot."""
        # It is tried without the other workers, which would wait for one that cannot.
        compiled = cast(nn.Module, torch.compile(self.model, dynamic=False))
        corpus, feed = self.settings.corpus, self.settings.feed
        images = torch.zeros(self.settings.images_per_pass, corpus.channels, feed.size, feed.size, dtype=torch.uint8)
        # A pass of both directions compiles the model; it changes the statistics of BatchNorm.
        undo = Undo(self.model.buffers())
        undo.keep()
        failed = ""
        try:
            torch.stack([one.mean() for one in self.forward(compiled.train(), images)]).sum().backward()
        except Exception as error:  # Compilers raise errors of many kinds.
            failed = shown(f"{type(error).__name__}, {' '.join(str(error).split())}", _LONGEST_REASON)
        undo.unless(torch.tensor(False, device=self.device))
        self.optimizer.zero_grad(set_to_none=True)
        if self.all_reduce_sum(torch.tensor([float(bool(failed))], dtype=torch.float64))[0]:
            why = failed or "another worker cannot"
            self.notes.append(f"The network is trained as it is, since it cannot be compiled (train.compile): {why}")
        elif self.training_model is self.model:
            self.training_model = compiled
        else:
            # Compiled anew with its first step, so that gradients are sent while others are still computed.
            torch._dynamo.reset()
            self.training_model = cast(nn.Module, torch.compile(self.training_model, dynamic=False))

    def _make_undo(self) -> Undo:
        """Returns what takes back a step that no worker may make.

        Where Python knows in time that it is such a step, it has changed the buffers alone: the forward pass updates
        the statistics of BatchNorm.
        """
        tensors = list(self.model.buffers())
        if not self.late:
            return Undo(tensors if self.settings.train.max_skipped or self.precision == "fp16" else [])
        tensors += [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        tensors += optim.create_state(self.optimizer)
        if self.average:
            tensors += [self.average.updates, *self.average.module.state_dict().values()]
        return Undo(tensors)

    @property
    def late(self) -> int:
        """The number of steps after which the result of a step is to be fetched.

        It is 0 on CPUs, where Python has waited for it anyway. It is 1 on GPUs, which decide by themselves whether a
        step is left out, so that they need not wait for Python.
        """
        return int(self.device.type != "cpu")

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and exported: the averaged one, where weights are averaged."""
        return self.average.module if self.average else self.model

    def forward(self, model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes logits: those of the model, and in training those of its further outputs if it has any.

        Args:
            model: The model, wrapped or not.
            images: (N, C, H, W) uint8.

        Returns:
            One or several of (N, K, H, W) float32.
        """
        pixels = images.to(self.device, torch.float32, non_blocking=True, memory_format=self.memory_format)
        inputs = scale_pixels(pixels, scale=255.0, normalise=self.settings.model.normalise)
        with autocast(self.device, self.precision):
            outputs = models.as_outputs(model(inputs))
        return tuple(one.float() for one in outputs)

    def step(self, batch: Batch, wishes: Sequence[float] = ()) -> Step:
        """Makes one optimiser step on one batch. Every worker calls it.

        If a loss or the gradient of any worker is not finite, no worker makes the step: weights, buffers and the state
        of the optimiser stay as they were. The schedule counts it.

        Args:
            batch: This worker's slice of the global batch.
            wishes: Numbers that are summed over the workers together with the losses.

        Returns:
            The step, which a GPU may not have made yet.
        """
        # Random numbers of a step (dropout) depend on (seed, step) alone, so that a resumed run draws the same ones.
        torch.manual_seed(self.settings.train.seed * 1_000_003 + batch.step)
        self.training_model.train()
        parts = self.settings.train.accumulate
        self._undo.keep()
        losses_of_pieces = []
        pieces = zip(batch.images.chunk(parts), batch.masks.chunk(parts), strict=True)
        for number, (images, masks) in enumerate(pieces, start=1):
            hold = getattr(self.training_model, "no_sync", nullcontext) if number < parts else nullcontext
            with hold():
                targets = masks.to(self.device, non_blocking=True)
                losses, *others = (self.loss(one, targets) for one in self.forward(self.training_model, images))
                # The reported losses are those of the main output, as in validation.
                sides = [self.settings.loss.sides * one.total for one in others]
                total = torch.stack([losses.total, *sides]).sum() if sides else losses.total
                self.scaler.scale(total / parts).backward()
            values = torch.stack([part.detach() for part in (losses.total, losses.dice, losses.bce)]).double()
            losses_of_pieces.append(values * len(images))
        own = torch.stack(losses_of_pieces).sum(0)
        known = torch.tensor([len(batch.images), *wishes], dtype=torch.float64, pin_memory=self.device.type == "cuda")
        # One sum carries everything that the workers must agree on, so that all of them make the step or none does.
        shared = self.all_reduce_sum(torch.cat([own, known.to(self.device, non_blocking=True)]))
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        finite = torch.isfinite(shared[: len(STEP_SUMS)]).all()
        is_made = finite & torch.isfinite(norm)
        if self.late or is_made:
            if self.settings.optim.clip:
                nn.utils.clip_grads_with_norm_(parameters, self.settings.optim.clip, norm)
            self.optimizer.step()
            if self.average:
                self.average.update(self.model)
        self._undo.unless(is_made)
        self.optimizer.zero_grad(set_to_none=True)
        # With fp16, gradients overflow now and then; the scaler lowers its factor.
        self.scaler.update()
        self.schedule.after_step()
        flags = torch.stack([norm.double(), torch.isfinite(own).all().double(), finite.double()])
        return Step(batch, torch.cat([shared, flags]), overflows=self._overflows)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch], sums: ValidationSums) -> None:
        """Adds the validation figures of batches to `sums`, computed with the model that is exported.

        The model is used without its DDP wrapper: the forward pass of DDP broadcasts buffers, and would wait for ever
        for a worker that has fewer validation batches.

        Args:
            batches: Validation batches.
            sums: Sums to add to, on the device of the learner.
        """
        model = self.evaluated.eval()
        for batch in batches:
            sums.update(self.forward(model, batch.images)[0], batch.masks.to(self.device, non_blocking=True))

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
            optim.load_optimizer(self.optimizer, training["optimizer"])
            self.schedule.load_state_dict(training["schedule"])
            self.scaler.load_state_dict(training["scaler"])
            if self.average and content.average is not None:
                self.average.load_state_dict({"module": content.average, "updates": training["average_updates"]})
            self._undo = self._make_undo()
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise JobFailedError(
                f"The newest checkpoint does not fit the network and the optimiser of this run ({error}). Remove it to "
                "resume from the one before."
            ) from error
