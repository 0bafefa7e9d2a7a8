"""Chooses the settings of a run by time and memory: python jobs/plan.py --shards.root DIR --minutes 20."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("plan"))
