"""The settings of each job, one class for each command."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_settings import CliImplicitFlag

from lungseg_ray.config.sections import CorpusSettings, Device, EvaluateSettings, Flips, Place, Settings
from lungseg_ray.config.tree import Section


class ShardJob(Settings):
    """Make shards of a corpus, or look at it first."""

    audit: CliImplicitFlag[bool] = Field(
        False, description="Look at the corpus, write audit.html and audit.csv to shards.root, and make no shards."
    )
    find: str | None = Field(None, description="Print the path behind a key of set_aside.csv (DICOM), and do no more.")


class EvaluateJob(Section):
    """Measure a trained model: on its own test images, or on another corpus."""

    run: Place = Field(description="Folder or s3:// prefix of a run, or of a sweep.")
    top: PositiveInt = Field(1, description="Of a sweep: average so many of its best trials.")
    flips: Flips = Field("none", description="Average over mirror images, too: horizontal, or all four of both axes.")
    corpus: CorpusSettings | None = Field(None, description="Another corpus, read as it is; else the run's shards.")
    shards: Place | None = Field(None, description="Where the run's shards lie now; else where they lay in training.")
    split: Literal["train", "val", "test", "all"] | None = Field(
        None, description="Which images; by default test of the run's shards, all of another corpus."
    )
    out: Place | None = Field(None, description="Folder for figures and pictures; else evaluation/ in the run.")
    device: Device = Field("auto", description="auto: cuda where the cluster has a GPU.")
    evaluate: EvaluateSettings = EvaluateSettings()


class PredictJob(Section):
    """Write the masks that a trained model sees in a folder of images."""

    run: Place = Field(description="Folder or s3:// prefix of a run, or of a sweep.")
    top: PositiveInt = Field(1, description="Of a sweep: average so many of its best trials.")
    flips: Flips = Field("none", description="Average over mirror images, too: horizontal, or all four of both axes.")
    images: Place = Field(description="Folder or s3:// prefix of images.")
    out: Place = Field(description="Folder or s3:// prefix for the masks; what is done there is not done again.")
    overlay: bool = Field(False, description="Write each image with the outline of its mask, too.")
    clean_up: bool = Field(False, description="Keep the two largest components and fill their holes.")
    batch: PositiveInt = Field(4, description="Images per forward pass.")
    workers: NonNegativeInt = Field(0, description="Processes; 0: as many as fit.")
    device: Device = Field("auto", description="auto: cuda where the cluster has a GPU.")


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


class TrainJob(Settings):
    """Train a segmentation model, or go on training it."""

    from_sweep: Place | None = Field(
        None, description="Folder or s3:// prefix of a finished sweep: its winner's settings are the defaults."
    )
