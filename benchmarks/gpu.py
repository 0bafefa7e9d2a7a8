"""Checks training and prediction on a GPU against a CPU, and measures their speed, in under five minutes.

It needs PyTorch and the packages of the project, but no Ray and no network. Without a GPU it runs on the CPU, with
smaller models. The result is a table, and JSON in benchmarks/results/gpu.json.

- Parity: the losses of 20 steps in fp32 on the CPU and on the device, and in bf16 on the device.
- A step that is left out, a checkpoint, and a resumed run, on the device: the weights are compared with those of a run
  that was not interrupted.
- Training: images per second of `Learner.step` on batches on the device, beside a bare loop of the same network, loss
  and optimiser that checks nothing, and with `train.compile`; the memory of the device; the share of its rate in large
  matrix products; and how often a step waits for the device.
- Prediction: images per second of `Predictor.maps`.

Run it from the folder of the repository: python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.results import write_result
from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.config import Settings
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.feed.batch import Batch
from lungseg_ray.inference.predictor import Predictor
from lungseg_ray.numerics import optim
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.run.checkpoint import copy_to_cpu
from lungseg_ray.run.exported import Sidecar
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.device import allow_fast_products, copies_to, matrix_rate
from lungseg_ray.training.learner import Learner
from lungseg_ray.training.model import build_model, model_cost
from lungseg_ray.training.precision import Precision

PARITY_STEPS, PARITY_SIZE, PARITY_BATCH = 20, 64, 4
WARM_UP, GROUPS, GROUP = 4, 5, 3
ON_GPU = (
    ("UnetPlusPlus", "timm-regnety_004", 256, 32),
    ("UnetPlusPlus", "timm-regnety_004", 512, 8),
    ("Unet", "timm-regnety_004", 256, 32),
    ("UnetPlusPlus", "resnet34", 256, 32),
    ("UnetPlusPlus", "resnet34", 512, 8),
    ("UnetPlusPlus", "timm-resnest200e", 256, 16),
)
ON_CPU = (("UnetPlusPlus", "timm-regnety_004", 64, 4), ("Unet", "timm-regnety_004", 64, 4))
"""Architecture, encoder, size in pixels and images per step of each network that is measured."""


def settings_of(architecture: str, encoder: str, size: int, batch: int, **more: dict[str, Any]) -> Settings:
    """Returns the settings of a run of that network, with random weights."""
    model = {"architecture": architecture, "encoder": encoder}
    return Settings.model_validate({"model": model, "feed": {"size": size, "batch": batch}, **more})


def batches(size: int, batch: int, count: int) -> list[Batch]:
    """Draws batches of phantoms."""
    pairs = [draw(number, seed=0, size=size) for number in range(min(count * batch, 16))]
    found = []
    for step in range(count):
        chosen = [pairs[(step * batch + number) % len(pairs)] for number in range(batch)]
        images = torch.from_numpy(np.stack([image[None] for image, _ in chosen]))
        found.append(Batch(step, images, torch.from_numpy(np.stack([mask for _, mask in chosen])), ["phantom"] * batch))
    return found


def losses(device: torch.device, precision: Precision) -> list[float]:
    """Returns the loss of each step of a short training, which starts from the same weights everywhere."""
    torch.manual_seed(0)
    settings = settings_of("UnetPlusPlus", "timm-regnety_004", PARITY_SIZE, PARITY_BATCH)
    learner = Learner(settings, device=device, precision=precision, total_steps=PARITY_STEPS)
    found = []
    for batch in batches(PARITY_SIZE, PARITY_BATCH, PARITY_STEPS):
        sums = learner.step(batch).result().sums
        found.append(sums["loss"] / sums["images"])
    return found


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Computes products of fp32 in fp32 for the time of the block, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def parity(device: torch.device) -> dict[str, Any]:
    """Compares the losses of the CPU and of the device."""
    with exact_products(device):
        reference, same = losses(torch.device("cpu"), "fp32"), losses(device, "fp32")
    return {
        "cpu_fp32": reference,
        "device_fp32": same,
        "device_bf16": losses(device, "bf16"),
        "largest_difference_fp32": max(abs(one - other) for one, other in zip(reference, same, strict=True)),
    }


def left_out(name: str, device: torch.device) -> float:
    """Makes steps of which one is not finite, in one run and in another that is saved and resumed.

    Args:
        name: The optimiser.
        device: The device.

    Returns:
        The largest difference between the weights of both at the end; not a number if any of them is not.

    Raises:
        RuntimeError: If the step was not left out.
    """
    tree: dict[str, Any] = {"optim": {"name": name, "lookahead_k": 2}, "train": {"average": 0.9, "max_skipped": 1}}
    settings = settings_of("Unet", "timm-regnety_004", PARITY_SIZE, PARITY_BATCH, **tree)
    given = [copies_to(device)(one) for one in batches(PARITY_SIZE, PARITY_BATCH, 6)]

    def steps(learner: Learner, numbers: range) -> None:
        for number in numbers:
            factor = float("nan") if number == 1 else 1.0
            hook = learner.loss.register_forward_pre_hook(lambda _, pair, by=factor: (pair[0] * by, pair[1]))
            result = learner.step(given[number]).result()
            hook.remove()
            if bool(result.not_finite) != (number == 1):
                raise RuntimeError(f"step {number}: {result.not_finite}")

    whole, first, second = (Learner(settings, device=device, precision="fp32", total_steps=6) for _ in range(3))
    steps(whole, range(6))
    steps(first, range(3))
    second.load(copy_to_cpu(first.content(Progress(epoch=0, step=3, precision="fp32"))))
    steps(second, range(3, 6))
    pairs = zip(whole.evaluated.state_dict().values(), second.evaluated.state_dict().values(), strict=True)
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


def seconds_of(step: Callable[[Batch], object], given: list[Batch], device: torch.device) -> float:
    """Returns the median time of a step, seconds, over groups of steps, which may overlap."""
    for number in range(WARM_UP):
        step(given[number % len(given)])
    times = []
    for _ in range(GROUPS):
        _synchronize(device)
        start = time.perf_counter()
        for number in range(GROUP):
            step(given[number % len(given)])
        _synchronize(device)
        times.append((time.perf_counter() - start) / GROUP)
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bare_step(learner: Learner) -> Callable[[Batch], object]:
    """Returns the step of a plain script: the same network, loss and optimiser, without any check."""
    settings, device = learner.settings, learner.device
    model = build_model(settings).to(device).to(memory_format=learner.memory_format).train()
    loss = SegmentationLoss(classes=1, dice_weight=settings.loss.dice, bce_weight=settings.loss.bce)
    optimizer = optim.build_optimizer(
        model,
        name=settings.optim.name,
        lr=settings.optim.lr,
        encoder_lr=settings.optim.encoder_lr,
        weight_decay=settings.optim.weight_decay,
        encoder_weight_decay=settings.optim.encoder_weight_decay,
        lookahead_k=settings.optim.lookahead_k,
        lookahead_alpha=settings.optim.lookahead_alpha,
    )

    def step(batch: Batch) -> None:
        images = batch.images.to(device, torch.float32, memory_format=learner.memory_format).div_(255)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(images)
        loss(logits.float(), batch.masks.to(device)).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training(kind: tuple[str, str, int, int], device: torch.device) -> dict[str, Any]:
    """Measures the training step of a network in bf16."""
    architecture, encoder, size, batch = kind
    settings, given = settings_of(*kind), [copies_to(device)(one) for one in batches(size, batch, 4)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    learner = Learner(settings, device=device, precision="bf16", total_steps=1000)
    ours = seconds_of(learner.step, given, device)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    bare = seconds_of(bare_step(learner), given, device)
    again = seconds_of(learner.step, given, device)
    ours = statistics.mean([ours, again])
    compiled = None
    if device.type == "cuda":
        train = settings.train.model_copy(update={"compile": True})
        other = settings.model_copy(update={"train": train})
        faster = Learner(other, device=device, precision="bf16", total_steps=1000)
        compiled = None if faster.notes else batch / seconds_of(faster.step, given, device)
    needed = 3e9 * model_cost(settings).gflops * batch / ours
    return {
        "network": f"{architecture}, {encoder}",
        "size": size,
        "batch": batch,
        "images_per_s": batch / ours,
        "bare_images_per_s": batch / bare,
        "ratio": bare / ours,
        "compiled_images_per_s": compiled,
        "matrix_rate_share": needed / matrix_rate(device, "bf16"),
        "memory_gib": memory,
        "waits_per_step": waits(learner, given[0]) if device.type == "cuda" else None,
    }


def waits(learner: Learner, batch: Batch) -> int:
    """Counts how often a step waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learner.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def prediction(model: nn.Module, size: int, batch: int, device: torch.device) -> dict[str, Any]:
    """Measures the prediction of resized images."""
    sidecar = Sidecar(
        size=size, channels=1, longer_side=1024, classes=1, class_names=["lung"], threshold=0.5, scale=255.0
    )
    predictor = Predictor([(model, sidecar)], device=device)
    images = np.stack([draw(number, seed=0, size=size)[0][:, :, None] for number in range(batch)])
    times = []
    for _ in range(8):
        start = time.perf_counter()
        predictor.maps([images])
        times.append(time.perf_counter() - start)
    return {"size": size, "batch": batch, "images_per_s": batch / statistics.median(times[2:])}


def main() -> None:
    """Measures, prints tables and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="the device to measure")
    given = parser.parse_args()
    device = torch.device("cuda" if given.device != "cpu" and torch.cuda.is_available() else "cpu")
    console = Console()
    allow_fast_products(device)
    if device.type == "cpu":
        reuse_memory()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "parity": parity(device), "training": []}
    difference = result["parity"]["largest_difference_fp32"]
    console.print(f"{name}, PyTorch {torch.__version__}")
    console.print(f"Losses of {PARITY_STEPS} steps in fp32, CPU and device: largest difference {difference:.2e}")
    with exact_products(device):
        result["left_out"] = {name: left_out(name, device) for name in ("radam", "adamw")}
    console.print(f"A step left out, and a run resumed: largest difference of a weight {result['left_out']}")
    table = Table("network", "px", "batch", "images/s", "bare loop", "ratio", "share", "compiled", "GiB", "waits")
    for kind in ON_GPU if device.type == "cuda" else ON_CPU:
        found = training(kind, device)
        result["training"].append(found)
        gib, stops = found["memory_gib"], found["waits_per_step"]
        table.add_row(
            found["network"],
            *(str(found[key]) for key in ("size", "batch")),
            *(f"{found[key]:.1f}" for key in ("images_per_s", "bare_images_per_s")),
            f"{found['ratio']:.2f}",
            f"{found['matrix_rate_share']:.0%}",
            "-" if found["compiled_images_per_s"] is None else f"{found['compiled_images_per_s']:.1f}",
            "-" if gib is None else f"{gib:.1f}",
            "-" if stops is None else str(stops),
        )
    console.print(table)
    size, batch = (256, 64) if device.type == "cuda" else (64, 4)
    settings = settings_of("UnetPlusPlus", "timm-regnety_004", size, batch)
    learner = Learner(settings, device=device, precision="fp32", total_steps=1)
    result["prediction"] = prediction(learner.model, size, batch, device)
    console.print(
        f"Prediction, Unet++ with RegNetY-004 at {size} px: {result['prediction']['images_per_s']:.0f} images/s"
    )
    write_result("gpu", result, console, device=name if device.type == "cuda" else "")


if __name__ == "__main__":
    main()
