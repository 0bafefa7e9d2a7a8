"""Writes the HTML page of a sweep or a run: python jobs/report.py --sweep DIR [--shards DIR], or --run DIR."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("report"))
