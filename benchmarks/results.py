"""The files that the benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

FOLDER = Path(__file__).resolve().parent / "results"


def write_result(name: str, result: Mapping[Any, Any], console: Console) -> None:
    """Writes the figures of a benchmark to `benchmarks/results/NAME.json`, and says so."""
    FOLDER.mkdir(exist_ok=True)
    place = FOLDER / f"{name}.json"
    place.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"Written: {place}")
