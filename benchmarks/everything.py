"""Runs all benchmarks, each of which writes its figures to benchmarks/results/; takes an hour on two cores, and
longer on slow ones.

A part whose figures are there already, of this code and from this machine, is not measured again, so that a command
that was interrupted goes on. Run it from the folder of the repository: python -m benchmarks.everything
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.results import code, machine, read_result

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "train": (),
    "predict": ("--named", "10000", "1000000"),
    "feed": ("--images", "6016", "1000000", "--seconds", "5", "--bucket", "slow"),
    "peers": ("--images", "1024", "--epochs", "3"),
    "sharding": ("--few", "100", "--many", "400"),
    "records": ("--images", "10000", "1000000"),
    "listing": ("--files", "10000"),
    "serving": (),
    "gpu": (),
}
"""The parts, each a module of this package, and their arguments."""


def main() -> None:
    """Runs the parts that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers of the feed")
    parser.add_argument("--again", action="store_true", help="measure all parts, also those whose figures are there")
    given = parser.parse_args()
    console = Console()
    failed = []
    for part, arguments in PARTS.items():
        found = read_result(part)
        if found and not given.again and code() and (found["code"], found["machine"]) == (code(), machine()):
            console.print(f"{part}: measured already")
            continue
        console.rule(part)
        start = time.perf_counter()
        python = given.peers if part == "peers" else sys.executable
        done = subprocess.run([python, "-m", f"benchmarks.{part}", *arguments], cwd=ROOT)
        console.print(f"{part}: {time.perf_counter() - start:.0f} s")
        if done.returncode:
            failed.append(part)
    if failed:
        raise SystemExit(f"These parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
