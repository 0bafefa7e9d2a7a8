"""The settings of each job, one class for each command. Those of a sweep are in `config.sweep`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import CliImplicitFlag

from lungseg_ray.config.corpus import CorpusSettings
from lungseg_ray.config.sections import EvaluateSettings, Settings
from lungseg_ray.config.tree import Section
from lungseg_ray.config.values import Device, Place, as_written
from lungseg_ray.names import Flips, Format


class ShardJob(Settings):
    """Build the shards of a corpus, or audit the corpus."""

    audit: CliImplicitFlag[bool] = Field(
        False, description="Audit the corpus: write audit.html and audit.csv to shards.root, and build no shards."
    )
    dry_run: CliImplicitFlag[bool] = Field(
        False, description="Print what the corpus holds, and draw three pairs to shards.root; build no shards."
    )
    against: Place | None = Field(
        None,
        description="With audit: folder or s3:// prefix of the shards that a model was trained on. The page says how "
        "the images of the corpus differ from them.",
    )
    run: Place | None = Field(
        None,
        description="With audit: folder or s3:// prefix of a sweep over feed.leave_out, or of a run. Instead of the "
        "corpus, the masks of its shards are checked: those that differ most from the predictions come first.",
    )
    find: str | None = Field(
        None, description="Print the path of the file that has this key in set_aside.csv (DICOM), and do nothing else."
    )

    @model_validator(mode="after")
    def _audit_is_asked_for(self) -> ShardJob:
        if self.run and self.against:
            raise ValueError("--run audits the masks of shards, --against a corpus: give one of them")
        return self


class ModelJob(Section):
    """The model that a job uses: that of a run, or the best ones of a sweep."""

    run: Place = Field(description="Folder or s3:// prefix of a run, or of a sweep.")
    top: PositiveInt = Field(1, description="Of a sweep: number of its best trials, whose predictions are averaged.")
    flips: Flips | None = Field(
        None,
        description="Average the prediction over mirror images. horizontal: the image and its left-right mirror image. "
        "all: the four combinations of both axes. By default as the model was trained to be used (model.flips).",
    )


class EvaluateJob(ModelJob):
    """Measure a trained model on its own test images, or on another corpus."""

    corpus: CorpusSettings | None = Field(
        None, description="Another corpus, read without shards. By default the shards of the run are used."
    )
    corpora: list[CorpusSettings] = Field(
        [],
        description="Several other corpora at once: a table of the own test images and of all of them, and where their "
        'masks follow other rules: [{"root": "first"}, {"root": "second"}].',
    )
    others: list[Place] = Field(
        [], description="With corpora: folders or s3:// prefixes of further runs, each with a row in the table."
    )
    shards: Place | None = Field(
        None, description="Folder or s3:// prefix of the run's shards, if it has changed since training."
    )
    split: Literal["train", "val", "test", "all"] | None = Field(
        None,
        description="Split whose images are used. By default test for the run's shards, and all for another corpus.",
    )
    out: Place | None = Field(
        None,
        description="Folder or s3:// prefix for figures and pictures. By default a folder in evaluation/ of the run.",
    )
    device: Device = Field("auto", description="Device to compute on. auto: cuda if the cluster has a GPU, else cpu.")
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _one_way(self) -> EvaluateJob:
        if self.corpora and (self.corpus or self.split or self.shards):
            raise ValueError("corpora measures the own test images and whole corpora: leave corpus, split, shards out")
        if self.others and not self.corpora:
            raise ValueError("others is for a table with several corpora: name them with corpora")
        return self


class PredictJob(ModelJob):
    """Write the masks that a trained model predicts for a folder of images."""

    images: Place = Field(description="Folder or s3:// prefix of images.")
    out: Place = Field(
        description="Folder or s3:// prefix for the masks. Images that have a mask there are not predicted again."
    )
    overlay: bool = Field(False, description="Also write each image with the outline of its predicted mask.")
    clean_up: bool | None = Field(
        None,
        description="Keep only the two largest components of each label, and fill their holes. By default as the model "
        "was trained to be used (model.clean_up).",
    )
    confidence: bool = Field(
        True,
        description="Also write which Dice is expected of each mask, where the model knows (confidence.json). The "
        "encoder runs twice for it.",
    )
    batch: PositiveInt | None = Field(
        None,
        description="Images per forward pass; fewer where a GPU has not enough memory. By default 4 on a CPU, and up "
        "to 16 on a GPU.",
    )
    workers: NonNegativeInt = Field(0, description="Largest number of prediction processes. 0: as many as fit.")
    device: Device = Field("auto", description="Device to compute on. auto: cuda if the cluster has a GPU, else cpu.")


class ReviewJob(Section):
    """Write review.html into a folder of predictions: one mask after another, with keys for verdicts."""

    predictions: Place = Field(description="Folder or s3:// prefix that jobs/predict.py wrote (its --out).")
    most: PositiveInt = Field(200, description="Largest number of masks, those of which the least is expected.")
    order: Literal["expected", "annotate"] = Field(
        "expected",
        description="expected: the masks of which the least is expected come first. annotate: those come first whose "
        "images are worth adding to the training images, of which little is expected and which do not look alike.",
    )


class DeliverJob(Section):
    """Write predicted masks in the forms that hospitals, annotators and statisticians use."""

    predictions: Place = Field(description="Folder or s3:// prefix that jobs/predict.py wrote (its --out).")
    out: Place = Field(description="Folder or s3:// prefix for the files, which must be new or empty.")
    form: Literal["dicom-seg", "dicom-picture", "labelme", "coco", "coco-rle", "masks", "measures"] = Field(
        description="dicom-seg: DICOM segmentations, of DICOM images. dicom-picture: DICOM secondary captures with "
        "outlines, of DICOM images. labelme: images as PNG with a file of LabelMe beside each. coco, coco-rle: images "
        "as PNG and annotations.json of COCO, which CVAT and others import, with polygons or run lengths. masks: "
        "images and masks as PNG, as for 3D Slicer. measures: a table of areas, heights and ratios."
    )
    verdicts: Place | None = Field(
        None, description="The file review.csv that a review page saved: only masks that were judged `verdict`."
    )
    verdict: Literal["right", "wrong", "unsure"] = Field("wrong", description="With verdicts: which masks are written.")

    @model_validator(mode="after")
    def _verdicts_are_given(self) -> DeliverJob:
        if "verdict" in self.model_fields_set and not self.verdicts:
            raise ValueError("--verdict needs --verdicts FILE, the file review.csv that a review page saved")
        return self


class ExportJob(Section):
    """Write a trained model as a file that other programs open."""

    run: Place = Field(description="Folder or s3:// prefix of a run, or of its exported model (best/).")
    out: Place = Field(description="Folder or s3:// prefix for the file, preprocessing.json and reference.py.")
    format: Format = Field(
        "onnx",
        description="onnx: for ONNX Runtime and others, needs pip install -c constraints.txt -e '.[export]'. "
        "torch-export: a program of torch.export. torchscript: for PyTorch in C++.",
    )
    flips: Flips | None = Field(
        None,
        description="The mirror images that the file averages over. By default as the model was trained to be used "
        "(model.flips).",
    )
    int8: CliImplicitFlag[bool] = Field(
        False,
        description="With onnx, also write model-int8.onnx, which computes convolutions with 8-bit integers, and print "
        "what that costs on validation images. Needs the run itself and its shards.",
    )
    shards: Place | None = Field(
        None,
        description="With int8: folder or s3:// prefix of the run's shards, if it has changed since training.",
    )

    @model_validator(mode="after")
    def _int8_is_onnx(self) -> ExportJob:
        if self.int8 and self.format != "onnx":
            raise ValueError(f"--int8 is for --format onnx, found {self.format}; leave one of them out")
        if self.shards and not self.int8:
            raise ValueError("--shards is for --int8, which reads images; leave it out, or add --int8")
        return self


class ReportJob(Section):
    """Write report.html, the page of a sweep or of a run, as one file that needs no network."""

    sweep: Place | None = Field(None, description="Folder or s3:// prefix of a sweep.")
    run: Place | None = Field(None, description="Folder or s3:// prefix of a run.")
    shards: Place | None = Field(
        None,
        description="Of a sweep: folder or s3:// prefix of its shards, if it has changed since training. The page "
        "shows pictures of them.",
    )
    out: Place | None = Field(
        None, description="Folder or s3:// prefix for the page. By default that of the sweep or run."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> ReportJob:
        given = [f"--{name} {value}" for name in ("sweep", "run") if (value := getattr(self, name))]
        if len(given) != 1:
            raise ValueError(f"expected either --sweep DIR or --run DIR, found {' and '.join(given) or 'none of them'}")
        if self.run and self.shards:
            raise ValueError("--shards is for the pictures of a sweep; the page of a run shows those of its evaluation")
        return self


class TrainJob(Settings):
    """Train a segmentation model, or resume its training."""

    from_sweep: Place | None = Field(
        None, description="Folder or s3:// prefix of a finished sweep, whose winner's settings become the defaults."
    )


class PlanJob(Settings):
    """Choose the settings of a run that fits a time and a memory. What is set here is kept as it is."""

    minutes: PositiveFloat = Field(20, description="Time for the whole run, from the command to the evaluation.")
    gib: NonNegativeFloat = Field(
        0, description="Memory for each worker, GiB: that of a GPU, or its own on CPUs. 0: what the machines have."
    )
    out: Place = Field(as_written("plan.yaml"), description="The configuration file to write.")
