"""The job that writes the HTML page of a sweep or a run."""

from __future__ import annotations

from rich.console import Console

from lungseg_ray.config import ReportJob
from lungseg_ray.page.render import write_run_page, write_sweep_page
from lungseg_ray.storage import Location


def main(job: ReportJob, console: Console) -> None:
    """Writes the page, and prints its location.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `report`.
    """
    console.print(f"Page: {report(job)}", highlight=False)


def report(job: ReportJob) -> Location:
    """Writes the HTML page of a sweep or of a run.

    Args:
        job: The settings of the job.

    Returns:
        The location of the HTML file.

    Raises:
        UserError: If the sweep or the run does not exist, or if it cannot be read.
    """
    if job.sweep:
        return write_sweep_page(job.sweep, shards=job.shards, out=job.out)
    assert job.run is not None, "ReportJob has either a sweep or a run"
    return write_run_page(job.run, out=job.out)
