"""The files that the benchmarks write."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lungseg_ray.cluster.planning import cores

FOLDER = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """Returns what computes: the GPU, or the cores and the name of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{cores()} cores of {name}"


def code() -> str:
    """Returns what git calls the folder `lungseg_ray`, with a `+` if its files differ; empty where there is no git."""
    tree = _git("rev-parse", "--short", "HEAD:lungseg_ray")
    return tree + ("+" if _git("status", "--porcelain", "lungseg_ray") else "")


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=FOLDER.parent.parent, capture_output=True, text=True)
    return found.stdout.strip()


def write_result(name: str, result: Mapping[Any, Any], console: Console) -> None:
    """Writes the figures of a benchmark to `benchmarks/results/NAME.json`, and says so."""
    FOLDER.mkdir(exist_ok=True)
    place = FOLDER / f"{name}.json"
    where = {"machine": machine(), "code": code()}
    place.write_text(json.dumps({**where, **result}, indent=2) + "\n")
    console.print(f"Written: {place}")


def read_result(name: str) -> dict[str, Any] | None:
    """Returns the figures that a benchmark has written; None if there are none."""
    with suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        return found
    return None
