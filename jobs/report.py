"""Writes the page of a sweep or a run: python jobs/report.py --sweep DIR [--shards DIR], or --run DIR."""

import sys

from rich.console import Console

from lungseg_ray import cli
from lungseg_ray.config import ReportJob


def main(job: ReportJob, console: Console) -> None:
    """Writes the page, and says where."""
    from lungseg_ray.page.write import report

    console.print(f"Page: {report(job)}", highlight=False)


if __name__ == "__main__":
    sys.exit(cli.run(ReportJob, main))
