"""What successive halving saves: the same search with the same seeds, once with every trial to its end, once halved.

    python benchmarks/halving.py --config configs/encoders_smoke.yaml --runs.root /tmp/halving

Takes what jobs/tune.py takes. It prints, and writes to benchmarks/results, the share of the epochs, and how far the
winner of the halved search is from that of the whole one, in the validation IoU that the whole one found for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lungseg_ray.config import SweepJob, load_settings
from lungseg_ray.sweep.ledger import Sweep, rank_trials

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def run(arguments: list[str], stop: str, *precision: str) -> Sweep:
    """Runs the search alone, or goes on with it."""
    job = load_settings(SweepJob, arguments)
    name = f"{job.runs.name}-{stop}"
    more = ["--sweep.stop", stop, "--sweep.finalists", "0", "--runs.name", name, *precision]
    subprocess.run([sys.executable, str(ROOT / "jobs" / "tune.py"), *arguments, *more], check=True)
    return Sweep(job.runs.root / name)


def compare(whole: Sweep, halved: Sweep) -> dict[str, Any]:
    """What the halved search spent and found, measured by the whole one."""
    scores = {trial.description: trial.score for trial in whole.trials() if trial.is_ranked}
    best, chosen = rank_trials(whole.trials())[0], rank_trials(halved.trials())[0]
    epochs = {name: sum(trial.epochs for trial in sweep.trials()) for name, sweep in (("w", whole), ("h", halved))}
    seconds = {name: sweep.seconds()["stage 1"] for name, sweep in (("w", whole), ("h", halved))}
    # The same seed makes the same run, so that both searches saw the same curves as far as they went.
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
    """Runs both searches and says what the second saved."""
    arguments = sys.argv[1:]
    whole = run(arguments, "none")
    # What the first has chosen by a probe, so that both see the same curves.
    found = compare(whole, run(arguments, "asha", "--train.precision", whole.started_with().settings.train.precision))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "halving.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
