"""Builds the shards of a corpus, or audits it: python jobs/shard.py --corpus.root DIR --shards.root DIR [--audit]."""

import sys

from lungseg_ray.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main("shard"))
