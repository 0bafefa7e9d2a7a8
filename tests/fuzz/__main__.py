"""Fuzzes what reads files of users: `python -m tests.fuzz --minutes 10`; it exits with 1 where something is found."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.child import FIELDS, Notes
from tests.fuzz.targets import TARGETS
from tests.helpers import ROOT

_MOST_DEATHS = 20
_COLUMNS = ("target", "inputs", "inputs/s", "slowest, s", "memory, MiB", "noisy inputs", "findings")


def fuzz(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Fuzzes one target in processes of its own, one after the other: each lives until an input kills it.

    Args:
        name: of the target.
        folder: for its corpus, inputs that were found, and what the processes print.
        seconds: in all.
    """
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed, data in TARGETS[name].seeds().items():
        (corpus / seed).write_bytes(data)
    notes, begun = Notes(folder / "notes", fresh=True), time.monotonic()
    for _ in range(_MOST_DEATHS):
        left = round(begun + seconds - time.monotonic())
        if left <= 0:
            break
        command = [sys.executable, "-m", "tests.fuzz.child", name, str(folder), str(left)]
        with (folder / "start.log").open("ab") as log:
            ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False).returncode
        if ended == 0:
            break
        said = (folder / "noise").read_text(errors="replace")[-2000:] if (folder / "noise").exists() else ""
        where = next((line for line in said.splitlines() if line.startswith("  File ")), f"status {ended}")
        notes.find(f"ends the process with status {ended}", where.strip(), notes.last)
        for seed_file in corpus.iterdir():
            if seed_file.read_bytes() == notes.last:
                seed_file.unlink()
    numbers = dict(zip(FIELDS, map(float, notes.numbers), strict=True))
    taken = time.monotonic() - begun
    return {"target": name, "seconds": taken, **numbers, "folder": str(folder), "findings": notes.found()}


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown, and below it what was found."""
    cells = [
        (
            row["target"],
            f"{row['inputs']:,.0f}",
            f"{row['inputs'] / row['seconds']:.0f}",
            f"{row['slowest_s']:.2f}",
            f"{row['memory_mib']:.0f}",
            f"{row['noisy']:.0f}",
            str(len(row["findings"])),
        )
        for row in rows
    ]
    lines = [" | ".join(line) for line in (_COLUMNS, ("---",) * len(_COLUMNS), *cells)]
    found = [
        f"{row['target']}: {one['what']} ({one['where']}; {one['input']})" for row in rows for one in row["findings"]
    ]
    return "\n".join([*(f"| {line} |" for line in lines), *found])


def main() -> int:
    """Parses the command, fuzzes, prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="in all, shared by the targets")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be given several times; by default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "fuzz", help="for corpora and findings")
    parser.add_argument("--out", type=Path, help="file for the table as JSON")
    asked = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("Fuzzing needs atheris, on Linux: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    names = asked.target or list(TARGETS)
    rows = [fuzz(name, asked.folder / name, 60 * asked.minutes / len(names)) for name in names]
    print(table(rows))
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["findings"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
