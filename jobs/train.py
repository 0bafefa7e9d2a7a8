"""Trains a segmentation model: python jobs/train.py [--config FILE] [--section.key value ...]."""

import sys
import time

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import TrainJob


def main(job: TrainJob, console: Console) -> None:
    """Trains, or goes on training."""
    from lungseg_ray.sweep.ledger import winner_of
    from lungseg_ray.train import train

    train(winner_of(job), console, started=STARTED)


if __name__ == "__main__":
    STARTED = time.time()
    sys.exit(cli.run(TrainJob, main))
