"""Writes predicted masks: python jobs/predict.py --run RUN --images DIR --out DIR [--top N] [--flips all]."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import PredictJob


def main(job: PredictJob, console: Console) -> None:
    """Predicts, and says what was set aside."""
    from lungseg_ray.cluster import session
    from lungseg_ray.predict import describe, predict

    with session.cluster(processes=job.workers):
        console.print(describe(predict(job), job), highlight=False)


if __name__ == "__main__":
    sys.exit(cli.run(PredictJob, main))
