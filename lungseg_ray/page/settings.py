"""The settings of the job that writes a page."""

from __future__ import annotations

from pydantic import Field, model_validator

from lungseg_ray.config import Place, Section


class ReportJob(Section):
    """Write report.html, the page of a sweep or of a run, one file that opens without a network."""

    sweep: Place | None = Field(None, description="Folder or s3:// prefix of a sweep.")
    run: Place | None = Field(None, description="Folder or s3:// prefix of a run.")
    shards: Place | None = Field(
        None, description="Of a sweep: where its shards lie now, for the pictures; else where they lay in training."
    )
    out: Place | None = Field(None, description="Folder or s3:// prefix for the page; else that of the sweep or run.")

    @model_validator(mode="after")
    def _one_of_both(self) -> ReportJob:
        given = [f"--{name} {value}" for name in ("sweep", "run") if (value := getattr(self, name))]
        if len(given) != 1:
            raise ValueError(f"expected either --sweep DIR or --run DIR, found {' and '.join(given) or 'none of them'}")
        if self.run and self.shards:
            raise ValueError("--shards is for the pictures of a sweep; the page of a run shows those of its evaluation")
        return self
