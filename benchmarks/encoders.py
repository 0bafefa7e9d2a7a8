"""Measures what each encoder of the menu costs and which architectures accept it, and writes docs/encoders.md.

Speed and memory are measured in separate processes, one at a time, each on one thread. Speed is processor time. All
pairs of architecture and encoder are measured in several rounds, and the fastest round of each pair counts, since other
processes on the machine can only add to the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.results import processor, write_result
from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.models import MENU, build, check, cost, find_unused_parameters
from lungseg_ray.names import ARCHITECTURES
from lungseg_ray.training.learner import UNUSED_PROBE_SIZE, Learner

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "encoders.md"
WITH_ANY_ENCODER = tuple(architecture for architecture in ARCHITECTURES if architecture != "U2Net")
"""U2Net has encoders of its own."""
MEASURED = ("Unet", "UnetPlusPlus")
SIZE, ROUNDS, WARM_UP, PASSES, BATCH, STEPS = 256, 3, 2, 5, 2, 2
Found = TypeVar("Found")

TEXT = """\
# Encoders

What each encoder of the menu (`lungseg_ray.models.MENU`) costs, and which architectures accept it. These are the ones
that the tests train with U-Net and U-Net++ in data-parallel training; any other encoder of segmentation_models_pytorch,
and any timm model as `tu-<name>`, can be named as well. One command measures all of this again and writes this page:

```sh
python -m benchmarks.encoders     # about {minutes} minutes
```

## How to read the table

Figures are for one grey channel, one class and {size} x {size} px, U-Net / U-Net++:

- **parameters, M**: in 10^6.
- **GFLOPs**: 10^9 floating point operations of one image's forward pass, a multiplication and an addition counted as
  two; those of convolutions and matrix products, nothing else.
- **forward, ms**: processor time of one image's forward pass in evaluation mode, on one thread, fp32, channels last.
  The median of {passes} passes after {warm_up} to warm up, and the least of {rounds} such medians from as many
  processes.
- **training, MB**: the largest resident set, in 10^6 bytes, of a process that makes {steps} training steps of {batch}
  images on one thread, fp32, channels last, with RAdam in Lookahead. Python and its libraries are in it: {idle:.0f} MB
  before the model is built.
- **accepted by**: which of {architectures} work with it.

Measured on: {processor}; 1 thread; PyTorch {torch}. Another processor has other times, and the memory depends on the
libraries.

## Pairs that do not work

A job that asks for one ends at once, with the same words.

{refused}

GERNet-S and the MobileOne encoders are not in the menu: channels last, on some processors, oneDNN overruns its memory
in the gradient of one of their convolutions (uxlfoundation/oneDNN, issue 6035). They are trained in the slower layout.

## Parameters without gradients

Data-parallel training waits for the gradient of every trainable parameter. With these pairs some never get one; they
are frozen before the model is wrapped, and training says so when it starts.

{unused}

## Pairs that need two images

These normalise, over the images of a pass, what was pooled to one pixel. Each worker must see two images at a time in
training: `feed.batch` is at least twice `train.workers` times `train.accumulate`.

{lonely}

## The table

| family | encoder | parameters, M | GFLOPs | forward, ms | training, MB | accepted by |
|---|---|--:|--:|--:|--:|---|
{rows}
"""


def milliseconds(architecture: str, encoder: str) -> float:
    """Returns the median processor time of the forward pass of one image, in milliseconds."""
    torch.set_num_threads(1)
    model = build(architecture=architecture, encoder=encoder, in_channels=1, classes=1).eval()
    model = model.to(memory_format=torch.channels_last)
    image = torch.rand(1, 1, SIZE, SIZE).to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(WARM_UP + PASSES):
            start = time.process_time()
            model(image)
            seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds[WARM_UP:])


def megabytes(architecture: str, encoder: str) -> float:
    """Returns the largest resident set of this process after `STEPS` training steps, in 10^6 bytes."""
    torch.set_num_threads(1)
    tree = {
        "model": {"architecture": architecture, "encoder": encoder},
        "feed": {"size": SIZE, "batch": BATCH},
        # With k = 1, the slow weights of Lookahead exist from the first step on, as they do in any longer run.
        "optim": {"lookahead_k": 1},
    }
    learner = Learner(
        settings=Settings.model_validate(tree), device=torch.device("cpu"), precision="fp32", total_steps=STEPS
    )
    for step in range(STEPS):
        images = torch.randint(0, 256, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)
        learner.step(Batch(step, images, (images[:, 0] > 127).to(torch.uint8), ["noise"] * BATCH))
    return largest_resident_set()


def largest_resident_set() -> float:
    """Returns the largest resident set of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def apart(function: Callable[..., Found], *arguments: str) -> Found:
    """Calls a function in a new process that has imported the libraries and done nothing else.

    Args:
        function: The function; pickle must be able to send it to the process.
        *arguments: The arguments of the function.

    Returns:
        The result of the function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lungseg_ray.training.loop"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def shapes(architecture: str, encoder: str) -> nn.Module:
    """Builds a network on the meta device, where tensors have shapes but no values, in training mode."""
    with torch.device("meta"):
        model = build(architecture=architecture, encoder=encoder, in_channels=1, classes=1)
    return model.to("meta").train()


def unused(model: nn.Module) -> list[str]:
    """Returns the modules whose parameters get no gradient, such as `encoder._bn1`.

    Args:
        model: The network, on the meta device.

    Returns:
        The first two parts of the names of these parameters, without repetition.
    """
    names = find_unused_parameters(model, in_channels=1, size=UNUSED_PROBE_SIZE)
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def learns_from_one_image(model: nn.Module) -> bool:
    """Returns whether a forward pass over a single image is possible in training mode."""
    try:
        model(torch.empty(1, 1, SIZE, SIZE, device="meta"))
    except ValueError:
        return False
    return True


def describe(encoder: str) -> dict[str, Any]:
    """Collects the properties of an encoder that are not measured: its cost, and how the architectures accept it.

    Args:
        encoder: The name of the encoder.

    Returns:
        `cost`: the fields of `models.Cost` by architecture, for those of `MEASURED`. `refused`: the error message by
        architecture. `unused`: the modules without gradients by architecture. `lonely`: the architectures that need two
        images.
    """
    found: dict[str, Any] = {"cost": {}, "refused": {}, "unused": {}, "lonely": []}
    for architecture in WITH_ANY_ENCODER:
        try:
            check(architecture=architecture, encoder=encoder, size=SIZE)
        except UserError as error:
            found["refused"][architecture] = str(error).removesuffix(" Choose another pair.")
            continue
        model = shapes(architecture, encoder)
        if names := unused(model):
            found["unused"][architecture] = names
        if not learns_from_one_image(model):
            found["lonely"].append(architecture)
    for architecture in MEASURED:
        pair = cost(architecture=architecture, encoder=encoder, in_channels=1, classes=1, size=SIZE)
        found["cost"][architecture] = asdict(pair)
    return found


def groups(items: Iterable[tuple[str, Hashable]]) -> dict[Any, list[str]]:
    """Groups names that have the same value.

    Args:
        items: Pairs of a name and its value.

    Returns:
        The names by value.
    """
    found: dict[Any, list[str]] = {}
    for name, value in items:
        found.setdefault(value, []).append(name)
    return found


def code(names: Iterable[str]) -> str:
    """Returns names as Markdown code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def page(figures: Mapping[str, Any]) -> str:
    """Returns the text of docs/encoders.md.

    Args:
        figures: The content of benchmarks/results/encoders.json.
    """
    encoders: dict[str, Any] = figures["encoders"]
    refused = [f"- {reason}" for found in encoders.values() for reason in found["refused"].values()]
    without = [
        f"- `{encoder}` with {', '.join(architectures)}: {code(names)}"
        for encoder, found in encoders.items()
        for names, architectures in groups((key, tuple(value)) for key, value in found["unused"].items()).items()
    ]
    lonely = [
        f"- {', '.join(architectures)} with {code(names)}"
        for architectures, names in groups((name, tuple(found["lonely"])) for name, found in encoders.items()).items()
        if architectures
    ]
    rows = []
    for family, members in MENU.items():
        for encoder in members:
            found = encoders[encoder]
            costs = [found["cost"][architecture] for architecture in MEASURED]
            cells = [
                " / ".join(f"{pair['parameters'] / 1e6:.1f}" for pair in costs),
                " / ".join(f"{pair['gflops']:.1f}" for pair in costs),
                " / ".join(f"{found['ms'][architecture]:.0f}" for architecture in MEASURED),
                " / ".join(f"{found['mb'][architecture]:.0f}" for architecture in MEASURED),
                f"all but {', '.join(found['refused'])}" if found["refused"] else "all",
            ]
            rows.append(f"| {family} | `{encoder}` | {' | '.join(cells)} |")
    return TEXT.format(
        **{key: value for key, value in figures.items() if key != "encoders"},
        size=SIZE,
        rounds=ROUNDS,
        warm_up=WARM_UP,
        passes=PASSES,
        batch=BATCH,
        steps=STEPS,
        architectures=", ".join(WITH_ANY_ENCODER),
        refused="\n".join(refused),
        unused="\n".join(without),
        lonely="\n".join(lonely),
        rows="\n".join(rows),
    )


def main() -> None:
    """Measures all encoders, and writes docs/encoders.md and benchmarks/results/encoders.json."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    console = Console()
    start = time.monotonic()
    names = [encoder for members in MENU.values() for encoder in members]
    pairs = [(architecture, encoder) for encoder in names for architecture in MEASURED]
    encoders = {name: describe(name) | {"ms": {}, "mb": {}} for name in track(names, "shapes", console=console)}
    for architecture, encoder in track(pairs, "memory", console=console):
        encoders[encoder]["mb"][architecture] = apart(megabytes, architecture, encoder)
    for number in range(ROUNDS):
        for architecture, encoder in track(pairs, f"speed, round {number + 1} of {ROUNDS}", console=console):
            found, best = apart(milliseconds, architecture, encoder), encoders[encoder]["ms"]
            best[architecture] = min(found, best.get(architecture, found))
    figures = {
        "processor": processor(),
        "torch": torch.__version__,
        "idle": apart(largest_resident_set),
        "minutes": round((time.monotonic() - start) / 60),
        "encoders": encoders,
    }
    write_result("encoders", figures, console)
    PAGE.write_text(page(figures))
    console.print(f"Wrote {PAGE.relative_to(ROOT)}", highlight=False)


if __name__ == "__main__":
    main()
