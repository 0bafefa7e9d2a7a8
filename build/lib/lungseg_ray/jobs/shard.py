"""The job that makes the shards of a corpus, or looks at the corpus alone."""

from __future__ import annotations

from rich.console import Console

from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import ShardJob
from lungseg_ray.corpus.layouts.dicom import find_path
from lungseg_ray.errors import UserError
from lungseg_ray.jobs import audit
from lungseg_ray.shards.build import describe_outcome, shard
from lungseg_ray.storage import Location


def main(job: ShardJob, console: Console) -> None:
    """Makes the shards, or finds that they are up to date; with --audit or --find, looks at the corpus alone."""
    if job.find:
        if not isinstance(job.corpus.root, Location):
            raise UserError("--find looks for a file of a corpus: set corpus.root to its folder.")
        console.print(find_path(job.corpus.root, job.find), highlight=False)
    elif job.audit:
        audit.main(job, console)
    else:
        with cluster(processes=1):
            console.print(describe_outcome(shard(job)), highlight=False)
