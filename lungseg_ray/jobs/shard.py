"""The job that builds the shards of a corpus. It can also audit the corpus, or find a file by its key."""

from __future__ import annotations

from rich.console import Console

from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import ShardJob
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.layouts.dicom import find_path
from lungseg_ray.corpus.pairs_picture import draw_pairs
from lungseg_ray.errors import UserError
from lungseg_ray.jobs import audit
from lungseg_ray.shards.build import shard
from lungseg_ray.shards.describe import describe_listing, describe_outcome
from lungseg_ray.storage import Location

DRY_RUN_PICTURE = "dry_run.png"
_DRAWN = 3
"""The number of pairs that --dry-run draws."""


def main(job: ShardJob, console: Console) -> None:
    """Builds the shards unless they are up to date.

    With --dry-run it prints what the corpus holds, with --audit it audits the corpus, with --find it finds a file.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `shard`, `audit.audit` or `find_path`, or if the corpus has no files to search by --find.
        OSError: If a file cannot be read or written.
    """
    if (job.run or job.against) and not job.audit:
        raise UserError(f"--{'run' if job.run else 'against'} belongs to an audit: add --audit.")
    if job.find:
        if not isinstance(job.corpus.root, Location):
            raise UserError("--find looks for a file of a corpus: set corpus.root to its folder, one at a time.")
        console.print(find_path(job.corpus.root, job.find), highlight=False)
    elif job.dry_run:
        listing = list_corpus(job.corpus, job.outputs)
        console.print(describe_listing(listing, job), highlight=False)
        if picture := draw_pairs(listing.records, listing.corpus, most=_DRAWN):
            place = job.shards.root / DRY_RUN_PICTURE
            job.shards.root.make_dir()
            place.write_bytes(picture)
            console.print(f"Pairs to look at: {place}", highlight=False)
    elif job.audit:
        audit.main(job, console)
    else:
        with cluster(processes=1):
            outcome = shard(job, lambda text: console.print(text, highlight=False))
            console.print(describe_outcome(outcome), highlight=False)
