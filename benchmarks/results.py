"""The files that the benchmarks write."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from lungseg_ray.cluster.planning import cores

FOLDER = Path(__file__).resolve().parent / "results"


def largest_mib() -> float:
    """Returns the largest memory of this process so far, MiB; `getrusage` counts the process that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def processor() -> str:
    """Returns the model name of the processor as /proc/cpuinfo contains it, and the instructions that matter most."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = found[1] if found else "a processor without a name"
    # Processors of one name may differ in them, and with them the speed of training by a factor of six.
    best = next((one for one in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {one}" in text), "")
    return f"{name} ({best})" if best else name


def machine() -> str:
    """Returns the cores and the name of the processor."""
    return f"{cores()} cores of {processor()}"


def code() -> str:
    """Returns a name of the code that is measured, and of the benchmarks; empty where git does not know its files."""
    measured = ("lungseg_ray", "benchmarks/*.py")
    if _git("status", "--porcelain", *measured):
        return ""
    files = _git("ls-tree", "-r", "HEAD", "lungseg_ray", "benchmarks").splitlines()
    return hashlib.sha256("\n".join(line for line in files if line.endswith(".py")).encode()).hexdigest()[:10]


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=FOLDER.parent.parent, capture_output=True, text=True)
    return found.stdout.strip()


def write_result(name: str, result: Mapping[Any, Any], console: Console, *, device: str = "") -> None:
    """Writes the figures of a benchmark to `benchmarks/results/NAME.json`, and says so.

    Args:
        name: The name of the benchmark.
        result: The figures.
        console: The console.
        device: What was measured; by default the processor.
    """
    FOLDER.mkdir(exist_ok=True)
    place = FOLDER / f"{name}.json"
    versions = {}
    for package in ("ray", "torch", "numpy", "albumentations"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    given = {"arguments": sys.argv[1:], "machine": device or machine(), "code": code()}
    where = {**given, "python": platform.python_version(), "versions": versions}
    place.write_text(json.dumps({**where, **result}, indent=2) + "\n")
    console.print(f"Written: {place}")


def read_result(name: str) -> dict[str, Any] | None:
    """Returns the figures that a benchmark has written; None if there are none."""
    with suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        return found
    return None
