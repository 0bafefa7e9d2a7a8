"""Writes a trained model as a file that other programs open: python jobs/export.py --run DIR --out DIR."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("export"))
