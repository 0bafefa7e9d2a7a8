"""Measures a trained model: python jobs/evaluate.py --run RUN [--top N] [--flips all] [--corpus.root DIR]."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import EvaluateJob


def main(job: EvaluateJob, console: Console) -> None:
    """Evaluates, and prints the figures."""
    from lungseg_ray.cluster import session
    from lungseg_ray.evaluate import evaluate_run, table

    with session.cluster(processes=job.evaluate.workers):
        result, out = evaluate_run(job)
        console.print(table(result))
        console.print(f"Figures and pictures: {out}", highlight=False)


if __name__ == "__main__":
    sys.exit(cli.run(EvaluateJob, main))
