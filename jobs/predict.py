"""Writes predicted masks: python jobs/predict.py --run RUN --images DIR --out DIR [--top N] [--flips all]."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("predict"))
