"""Trains a segmentation model: python jobs/train.py [--config FILE] [--section.key value ...]."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("train"))
