"""Searches encoders, architectures and learning rates: python jobs/tune.py --config FILE [--section.key value ...]."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import SweepJob


def main(job: SweepJob, console: Console) -> None:
    """Runs a sweep, or goes on with it."""
    from lungseg_ray.sweep.drive import sweep

    sweep(job, console)


if __name__ == "__main__":
    sys.exit(cli.run(SweepJob, main))
