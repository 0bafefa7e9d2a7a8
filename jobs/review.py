"""Writes a page for judging predicted masks: python jobs/review.py --predictions DIR."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("review"))
