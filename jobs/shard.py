"""Makes shards of a corpus: python jobs/shard.py --corpus.root DIR --shards.root DIR."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import Settings


def main(settings: Settings, console: Console) -> None:
    """Makes the shards, or finds that they are up to date."""
    from lungseg_ray import resources
    from lungseg_ray.sharding import describe, shard

    with resources.cluster(processes=1):
        console.print(describe(shard(settings)), highlight=False)


if __name__ == "__main__":
    sys.exit(cli.run(Settings, main))
