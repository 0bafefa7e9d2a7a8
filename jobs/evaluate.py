"""Measures a trained model: python jobs/evaluate.py --run RUN [--top N] [--flips all] [--corpus.root DIR]."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("evaluate"))
