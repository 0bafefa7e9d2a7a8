"""Measures what successive halving saves: runs the same search with the same seeds, in full and with halving.

    python -m benchmarks.halving --config configs/encoders_smoke.yaml --runs.root /tmp/halving

In the full search, every trial trains to its last epoch. The script takes the same arguments as jobs/tune.py. It prints
and writes to benchmarks/results/halving.json the share of the epochs that the halved search takes, and the difference
between the validation IoU of the two winners. The IoU of both winners is that of the full search.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.results import write_result
from lungseg_ray.config import SweepJob, load_settings
from lungseg_ray.sweep.ledger import Sweep, rank_trials

ROOT = Path(__file__).resolve().parent.parent


def run(arguments: list[str], stop: str, *precision: str) -> Sweep:
    """Runs a search without finalists, or resumes it.

    Args:
        arguments: The command-line arguments of this script.
        stop: The setting `sweep.stop`, "none" or "asha".
        *precision: The option `--train.precision` and its value; nothing to let the search choose.

    Returns:
        The finished search.

    Raises:
        CalledProcessError: If jobs/tune.py fails.
    """
    job = load_settings(SweepJob, arguments)
    name = f"{job.runs.name}-{stop}"
    more = ["--sweep.stop", stop, "--sweep.finalists", "0", "--runs.name", name, *precision]
    subprocess.run([sys.executable, str(ROOT / "jobs" / "tune.py"), *arguments, *more], check=True)
    return Sweep(job.runs.root / name)


def compare(whole: Sweep, halved: Sweep) -> dict[str, Any]:
    """Compares the halved search with the full one.

    Args:
        whole: The full search.
        halved: The search with successive halving.

    Returns:
        The figures. Each share is the amount of the halved search divided by that of the full search. `iou_behind` is
        the validation IoU of the winner of the full search minus that of the halved search, both in the full search.
    """
    scores = {trial.description: trial.score for trial in whole.trials() if trial.is_ranked}
    best, chosen = rank_trials(whole.trials())[0], rank_trials(halved.trials())[0]
    epochs = {name: sum(trial.epochs for trial in sweep.trials()) for name, sweep in (("w", whole), ("h", halved))}
    seconds = {name: sweep.seconds()["stage 1"] for name, sweep in (("w", whole), ("h", halved))}
    # The same seed gives the same run, so both searches must have the same curve of a trial for as long as it trains.
    same = {trial.description: trial.scores for trial in whole.trials()}
    equal = sum(trial.scores == same[trial.description][: trial.epochs] for trial in halved.trials())
    return {
        "trials": len(scores),
        "epochs_whole": epochs["w"],
        "epochs_halved": epochs["h"],
        "share_of_epochs": epochs["h"] / epochs["w"],
        "share_of_seconds": seconds["h"] / seconds["w"],
        "winner_whole": best.description,
        "winner_halved": chosen.description,
        "iou_behind": (best.score or 0.0) - (scores[chosen.description] or 0.0),
        "trials_with_equal_curves": equal,
    }


def main() -> None:
    """Runs both searches, and prints and writes what the halved one saves."""
    arguments = sys.argv[1:]
    whole = run(arguments, "none")
    # The second search uses the precision that the first one chose by a probe, so that both see the same curves.
    found = compare(whole, run(arguments, "asha", "--train.precision", whole.started_with().settings.train.precision))
    console = Console()
    console.print_json(data=found)
    write_result("halving", found, console)


if __name__ == "__main__":
    main()
