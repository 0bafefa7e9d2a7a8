"""Trains each architecture of the menu for as many minutes as the others, and compares them on validation images.

Each is trained by `benchmarks.recipes`, in a process with one thread; as many run beside each other as there are cores.
The number of epochs is chosen before, from the speed of a few steps, so that the learning rate comes to its end in the
minutes that are given. The settings are those of configs/best.yaml but for the network. Run it from the folder of the
repository:

    python -m benchmarks.networks --shards DIR [--minutes 6] [--section.key value ...]

It writes the section of docs/recipes.md on architectures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
import yaml
from rich.console import Console

from benchmarks.page import DOCS, table
from benchmarks.results import write_result
from lungseg_ray.cluster.planning import cores
from lungseg_ray.config import Settings, load_settings
from lungseg_ray.shards.index import read_index
from lungseg_ray.shards.reuse import with_shard_settings
from lungseg_ray.storage import locate
from lungseg_ray.training.model import model_cost
from lungseg_ray.training.step_cost import measure_step

ROOT = Path(__file__).resolve().parent.parent
REGNET = "timm-regnety_004"
NETWORKS: dict[str, dict[str, Any]] = {
    "Unet, light decoder": {"architecture": "Unet", "encoder": REGNET, "decoder_channels": [128, 64, 32, 16, 16]},
    "Unet": {"architecture": "Unet", "encoder": REGNET},
    "Unet++": {"architecture": "UnetPlusPlus", "encoder": REGNET},
    "MAnet": {"architecture": "MAnet", "encoder": REGNET},
    "Linknet": {"architecture": "Linknet", "encoder": REGNET},
    "FPN": {"architecture": "FPN", "encoder": REGNET},
    "DeepLabV3": {"architecture": "DeepLabV3", "encoder": REGNET},
    "PraNet": {"architecture": "PraNet", "encoder": REGNET},
    "U2Net, small": {"architecture": "U2Net", "encoder": "rsu_small"},
}
"""The networks by the names in the table: what they change in the section `model` of the recipe."""
_HEADING = "## Architectures in equal minutes"


def arguments_of(name: str, shards: str, more: Sequence[str], out: str) -> list[str]:
    """Writes the recipe with a network to a file, and returns the settings as arguments."""
    recipe = yaml.safe_load((ROOT / "configs/best.yaml").read_text())
    model = {key: value for key, value in recipe["model"].items() if key != "decoder_channels"}
    file = Path(out) / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**recipe, "model": {**model, **NETWORKS[name]}}))
    return ["--config", str(file), "--shards.root", shards, *more]


def probe(arguments: Sequence[str]) -> dict[str, float]:
    """Returns the cost of a network, and how long it takes for an epoch with one thread, seconds."""
    settings = load_settings(Settings, list(arguments))
    index = read_index(settings.shards.root)
    settings = with_shard_settings(settings, index)
    step = measure_step(settings, device=torch.device("cpu"), threads=1)
    images = index.count("train") // settings.feed.batch * settings.feed.batch
    gflops = model_cost(settings).gflops
    return {"epoch_seconds": images / step.images_per_s, "parameters": step.parameters, "gflops": gflops}


def trained(name: str, shards: str, minutes: float, more: Sequence[str], out: str) -> dict[str, Any]:
    """Trains a network for some minutes, and returns its figures."""
    arguments = arguments_of(name, shards, more, out)
    arguments += ["--train.precision", "fp32"]
    measured = _run("benchmarks.networks", "--probe", *arguments)
    found: dict[str, Any] = json.loads(measured.splitlines()[-1])
    epochs = max(round(60 * minutes / found["epoch_seconds"]), 1)
    _run("benchmarks.recipes", name, out, *arguments, "--train.epochs", str(epochs))
    recipe = json.loads((Path(out) / f"{name}.json").read_text())
    figures = {key: recipe[key] for key in ("train_seconds", "val", "val_shifted")}
    return {**found, **figures, "epochs": epochs}


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def write_section(result: dict[str, Any]) -> None:
    """Replaces the section of docs/recipes.md."""
    about = (
        f"Written by `python -m benchmarks.networks`: the recipe of `configs/best.yaml` at {result['size']} px with "
        f"other networks, all with RegNetY-004 but for U2Net, each trained for about {result['minutes']:g} minutes on "
        f"one core in fp32, once, and so for different numbers of epochs ({result['machine']}). Many of them are far "
        "from their end after that; the table tells which network a short time is best spent on, not which is best. "
        "GFLOPs are those of the forward pass of one image."
    )
    head = ("network", "parameters, M", "GFLOPs", "epochs", "minutes", "validation Dice", "changed copies")
    rows = [
        (
            name,
            f"{one['parameters'] / 1e6:.1f}",
            f"{one['gflops']:.1f}",
            str(one["epochs"]),
            f"{one['train_seconds'] / 60:.1f}",
            f"{one['val']:.4f}",
            f"{one['val_shifted']:.4f}",
        )
        for name, one in sorted(result["networks"].items(), key=lambda item: -item[1]["val"])
    ]
    page = DOCS / "recipes.md"
    prose = page.read_text().partition(_HEADING)[0].strip()
    page.write_text("\n\n".join((prose, _HEADING, fill(about, 120, break_on_hyphens=False), table(head, rows))) + "\n")


def main() -> None:
    """Measures all networks, and writes the section and the result."""
    if sys.argv[1:2] == ["--probe"]:
        print(json.dumps(probe(sys.argv[2:])), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="the shards to train on")
    parser.add_argument("--minutes", type=float, default=6, help="how long each network is trained")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which of them")
    given, more = parser.parse_known_args()
    console = Console()
    shards = str(locate(given.shards).uri)
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lungseg-networks-") as out, ThreadPoolExecutor(cores()) as pool:
        size = load_settings(Settings, arguments_of(given.networks[0], shards, more, out)).feed.size
        waiting = {name: pool.submit(trained, name, shards, given.minutes, more, out) for name in given.networks}
        for name, one in waiting.items():
            networks[name] = one.result()
            console.print(f"{name}: {networks[name]}")
    result = {"minutes": given.minutes, "size": size, "networks": networks}
    write_result("networks", result, console)
    write_section(json.loads((ROOT / "benchmarks/results/networks.json").read_text()))


if __name__ == "__main__":
    main()
