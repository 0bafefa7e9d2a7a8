"""Searches encoders, architectures and learning rates: python jobs/tune.py --config FILE [--section.key value ...]."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("tune"))
