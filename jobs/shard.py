"""Makes shards of a corpus, or looks at it: python jobs/shard.py --corpus.root DIR --shards.root DIR [--audit]."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import ShardJob


def main(job: ShardJob, console: Console) -> None:
    """Makes the shards, or finds that they are up to date; with --audit or --find, looks at the corpus alone."""
    from lungseg_ray.cluster import session

    if job.find:
        from lungseg_ray.corpus.layouts.dicom import find_path as find

        console.print(find(job.corpus.root, job.find), highlight=False)
        return
    with session.cluster(processes=1):
        if job.audit:
            from lungseg_ray.audit.job import audit, summary

            console.print(summary(*audit(job)), soft_wrap=False)
        else:
            from lungseg_ray.shards.build import describe_outcome as describe
            from lungseg_ray.shards.build import shard

            console.print(describe(shard(job)), highlight=False)


if __name__ == "__main__":
    sys.exit(cli.run(ShardJob, main))
