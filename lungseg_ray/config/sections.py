"""The tree of settings that `--help` prints, that a configuration file may contain, and that a run stores.

The docstrings of the sections and the descriptions of the settings are the texts of `--help` and of docs/settings.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from lungseg_ray.config.corpus import CorpusSettings
from lungseg_ray.config.tree import Mark, Section
from lungseg_ray.config.values import (
    DEFAULT_ENCODER,
    Architecture,
    Device,
    Encoder,
    NodeFolder,
    Place,
    Preset,
    Seed,
    Share,
    Size,
    WeightsName,
    as_written,
)
from lungseg_ray.names import ARCHITECTURES, Fit, Flips
from lungseg_ray.storage import PATIENCE_SECONDS, Location


class ShardSettings(Section):
    """The shards: Parquet files with the images and masks of the corpus, at a limited size."""

    root: Place = Field(as_written("data/phantom"), description="Folder or s3:// prefix of the shards.")
    longer_side: Annotated[int, Field(ge=32, le=8192), Mark.IN_SHARDS] = Field(
        1024,
        description="Maximum length of the longer side in pixels. Larger images are reduced to it and keep their "
        "aspect ratio.",
    )
    rows: Annotated[PositiveInt, Mark.IN_SHARDS] = Field(64, le=100_000, description="Images per shard file.")
    max_set_aside: Share = Field(
        0.05, description="Largest share of the files, 0 to 1, that may be unusable. With more of them the job fails."
    )
    replace: Annotated[bool, Mark.MAY_CHANGE] = Field(
        False,
        description="Whether shards of other files or other settings in this folder are replaced. A training that "
        "reads them then ends.",
    )


def _part(text: str) -> str:
    """Checks the name of a part of the patients, which may be empty."""
    found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text)
    if text and not (found and int(found[1]) < int(found[2]) and int(found[2]) >= 2):
        raise ValueError(f"expected a part such as 0/4, the first of four, found {text}")
    return text


class FeedSettings(Section):
    """The feed, which turns shards into batches."""

    preset: Preset = Field(
        "chest",
        description="Augmentation preset: valid, light, medium or heavy of the recipe, chest, or chest_robust for "
        "images of other hospitals.",
    )
    size: Size = Field(
        128, description="Height and width of the input of the network, in pixels. The published recipe uses 256."
    )
    fit: Fit = Field(
        "stretch",
        description="How an image that is not square becomes so. stretch: both sides get the same length, as in the "
        "recipe. pad: by black borders, which keeps its aspect ratio. The model predicts in the same way.",
    )
    sizes: list[Size] = Field(
        [],
        description="Sizes of the training images in equal parts of the run, such as [128, 192, 256]. By default "
        "feed.size throughout. Validation and prediction take feed.size.",
    )
    batch: PositiveInt = Field(8, description="Images per optimiser step, over all workers.")
    window: PositiveInt = Field(64, description="Number of shards whose rows are shuffled together.")
    leave_out: Annotated[str, AfterValidator(_part)] = Field(
        "",
        description="Part of the patients whose training images are left out, such as 0/4 for the first of four. A "
        "sweep over all parts trains models by which an audit finds wrong masks.",
    )
    tasks: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Largest number of CPUs for the data tasks of each worker. 0: as many as there are."
    )
    ahead: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        64, description="Number of images that each worker prepares in advance."
    )
    cache: Annotated[NodeFolder, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        "auto",
        description="Folder on the disk of each node for copies of the shards; auto: one in TMPDIR or /var/tmp, if the "
        "shards are in a bucket; off: none.",
    )
    cache_gib: Annotated[PositiveFloat, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        100.0, description="Largest size of these copies, GiB. A twentieth of the disk stays free in any case."
    )


class CorporaSettings(Section):
    """Shards of another corpus, whose training images are mixed with those of shards.root."""

    root: Place = Field(description="Folder or s3:// prefix of its shards.")
    share: Share = Field(
        description="Its share of the images of an epoch, for which others of shards.root are left out. None comes "
        "twice in an epoch."
    )
    first: Share = Field(0.0, description="Share of the run after which it is used.")
    until: Share = Field(1.0, description="Share of the run after which it is no longer used.")
    fingerprint: str = Field("", description="The fingerprint of its shards, which the run finds out.")


class ModelSettings(Section):
    """The segmentation network."""

    architecture: Architecture = Field("UnetPlusPlus", description=f"Architecture: {', '.join(ARCHITECTURES)}.")
    encoder: Encoder = Field(
        DEFAULT_ENCODER,
        description="Encoder: any that segmentation_models_pytorch accepts for the architecture; for U2Net rsu or "
        "rsu_small.",
    )
    decoder_channels: Annotated[list[PositiveInt], Field(min_length=5, max_length=5)] | None = Field(
        None,
        description="Channels of the five stages of the decoder of a Unet, UnetPlusPlus or MAnet, from the deepest "
        "one. By default 256, 128, 64, 32, 16; with half of them, a Unet takes half the time.",
    )
    normalise: bool = Field(
        False,
        description="Whether the network gets each image with mean 0 and standard deviation 1, instead of its values "
        "divided by 255.",
    )
    weights: WeightsName = Field(
        "none",
        description="Initial weights of the encoder alone: imagenet, none (random), or the path of a weights file.",
    )
    start: Annotated[Place | None, Mark.NOT_SEARCHED] = Field(
        None,
        alias="from",
        description="Folder or s3:// prefix of a run, or of an exported model, with whose weights training starts. "
        "Architecture, encoder and feed.size are those of the model. If its classes are others, its head is replaced.",
    )

    threshold: Share | Literal["validation"] = Field(
        0.5,
        description="Probability above which a pixel is positive, with one class, which is stored with the finished "
        "model. validation: of 0.3 to 0.7, the one with the largest mean Dice on the validation images, whose own "
        "figures are those at 0.5.",
    )
    flips: Flips = Field(
        "none",
        description="Mirror images over which the finished model averages its prediction, unless a command asks for "
        "others. horizontal: the image and its left-right mirror image. all: the four combinations of both axes.",
    )
    clean_up: bool = Field(
        False,
        description="Whether the finished model keeps only the two largest components of each label and fills their "
        "holes, unless a command asks for something else.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if self.start and self.weights != "none":
            raise ValueError("from holds all weights, so that weights (of the encoder alone) must be none")
        return self


class LossSettings(Section):
    """The loss, a weighted sum of Dice loss and cross-entropy."""

    dice: NonNegativeFloat = Field(1.0, description="Weight of the Dice loss.")
    bce: NonNegativeFloat = Field(0.8, description="Weight of the cross-entropy, which is binary with one class.")
    label_weights: list[NonNegativeFloat] = Field(
        [],
        description="Weights of the pixels of each label in the cross-entropy, from the background on, such as "
        "[1, 1, 4] for a rare second class. By default all are equal.",
    )
    sides: NonNegativeFloat = Field(
        1.0,
        description="Weight of the loss of each further output, which PraNet and U2Net have in training, beside that "
        "of the main one (deep supervision).",
    )


class OptimSettings(Section):
    """The optimiser, the learning rates and their schedule."""

    name: Literal["radam", "adamw"] = Field("radam", description="Optimiser. Both have decoupled weight decay.")
    lr: PositiveFloat = Field(3e-3, description="Learning rate of the decoder and the head.")
    encoder_lr: PositiveFloat = Field(3e-3, description="Learning rate of the encoder.")
    weight_decay: NonNegativeFloat = Field(
        1e-2, description="Weight decay of the decoder and the head. Biases have none."
    )
    encoder_weight_decay: NonNegativeFloat = Field(1e-2, description="Weight decay of the encoder. Biases have none.")
    lookahead_k: NonNegativeInt = Field(
        5, description="Lookahead: steps between two updates of the slow weights. 0: no Lookahead."
    )
    lookahead_alpha: Share = Field(
        0.5, description="Lookahead: share of the distance to the fast weights that each update covers, 0 to 1."
    )
    schedule: Literal["plateau", "one_cycle", "cosine", "constant"] = Field(
        "one_cycle",
        description="Learning rate schedule. plateau: follows the validation loss. one_cycle, cosine: follow the step "
        "over the whole run.",
    )
    factor: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="plateau: factor by which the learning rate is multiplied, from 0 on and less than 1."
    )
    patience: NonNegativeInt = Field(
        10,
        description="plateau: number of epochs without a better validation loss before the learning rate is reduced.",
    )
    warmup: Share = Field(
        0.25, description="one_cycle, cosine: share of the steps, 0 to 1, in which the learning rate rises."
    )
    clip: NonNegativeFloat = Field(1.0, description="Largest norm of the gradient. 0: no clipping.")


BestBy = Literal["loss", "iou", "dice", "dice_positives"]


class TrainSettings(Section):
    """The training loop."""

    epochs: Annotated[PositiveInt, Mark.NOT_SEARCHED] = Field(
        10, description="Number of passes over the training images."
    )
    seed: Annotated[Seed, Mark.NOT_SEARCHED] = Field(
        0, description="Seed of the initial weights, the order of the images and the augmentation."
    )
    workers: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        1, description="Number of training processes. The batch is divided among them."
    )
    device: Annotated[Device, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        "auto",
        description="Device of the workers. auto: cuda if the cluster has a GPU for each of the workers, "
        "or of train.min_workers, or can start them; else cpu.",
    )
    threads: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="CPU threads of each worker. 0: the cores divided by the workers."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Floating-point precision. auto: the faster of fp32 and bf16 in a short probe, on GPUs bf16 or, if "
        "that is not supported, fp16. The choice is kept on resume.",
    )
    channels_last: bool = Field(True, description="Memory layout channels last, which is faster on most devices.")
    compile: Annotated[bool, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        False,
        description="Compile the network (torch.compile), which takes minutes at the start and needs a C++ compiler on "
        "CPUs. If it cannot be compiled, it is trained as it is.",
    )
    accumulate: PositiveInt = Field(
        1, description="Passes per optimiser step. More passes need less memory for the same batch."
    )
    average: Share = Field(0.0, description="Decay per step of the moving average of the weights. 0: no average.")
    best_by: Annotated[BestBy, Mark.NOT_SEARCHED] = Field(
        "loss",
        description="Validation figure by which epochs are ranked: that of the best is exported, and those of sweeps "
        "compare by it (loss: by IoU). dice_positives: mean Dice of the images that have the structure, of "
        "several the mean over them, for sets in which most masks are empty.",
    )
    early_stop: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Number of epochs without a better one, by train.best_by, after which training stops. 0: never."
    )
    min_workers: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0,
        description="Smallest number of workers with which training continues while nodes are missing; all "
        "train.workers are used again when the nodes are back. feed.batch must be divisible by each number of workers "
        "from it on. 0: always train.workers.",
    )
    max_failures: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        3, description="How often in a row lost workers are restarted without reaching another checkpoint. 0: never."
    )
    max_skipped: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        0, description="Number of steps of a run that may be skipped because loss or gradient is not finite. 0: none."
    )
    quiet: Annotated[bool, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        False, description="Print no progress of the training: neither epochs nor trials, only messages and the result."
    )
    stall_seconds: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        600, description="Seconds without progress after which the job ends."
    )


class CheckpointSettings(Section):
    """The checkpoints of a run."""

    keep: PositiveInt = Field(2, description="Number of best checkpoints to keep, in addition to the latest two.")
    every_steps: NonNegativeInt = Field(
        0,
        description="Steps within an epoch after which another checkpoint is saved. 0: only at the end of each epoch.",
    )


class StorageSettings(Section):
    """Access to disks and buckets."""

    patience_seconds: NonNegativeInt = Field(
        PATIENCE_SECONDS,
        description="Seconds for which a running job retries when a bucket does not answer, or when a checkpoint does "
        "not fit on the disk. 0: no retries.",
    )


class TrackSettings(Section):
    """Services that show runs beside one another. Their libraries are an extra: `track`."""

    mlflow: str | None = Field(
        None,
        description="Address of an MLflow server, such as http://host:5000. The experiment is MLFLOW_EXPERIMENT_NAME, "
        "by default lungseg-ray.",
    )
    wandb: str | None = Field(
        None,
        description="Project of Weights & Biases, such as team/lungs. WANDB_API_KEY, WANDB_MODE and its other "
        "variables take effect.",
    )

    @field_validator("mlflow", "wandb")
    @classmethod
    def _no_secret(cls, address: str | None) -> str | None:
        if address and ("@" in address or "?" in address):
            raise ValueError(
                "an address with a name, a password or a key would be stored with the settings of the run; give them "
                "as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as MLFLOW_TRACKING_TOKEN or as "
                "WANDB_API_KEY"
            )
        return address


class RunSettings(Section):
    """The folder of the run."""

    root: Place = Field(as_written("runs"), description="Folder or s3:// prefix of all runs.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "local", description="Name of the run, a folder in runs.root. The same name resumes the same run."
    )


class EvaluateSettings(Section):
    """The evaluation of a trained model."""

    threshold: Share | None = Field(
        None,
        description="Probability above which a pixel is positive, with one class. "
        "By default the threshold stored with the model (model.threshold). In a training job, it is also the one that "
        "is stored.",
    )
    batch: PositiveInt | None = Field(
        None,
        description="Images per forward pass; fewer where a GPU has not enough memory. By default 4 on a CPU, and up "
        "to 16 on a GPU.",
    )
    workers: NonNegativeInt = Field(0, description="Largest number of evaluation processes. 0: as many as fit.")
    clean_up: bool = Field(
        True,
        description="Also report figures for masks of which only the two largest components of each label are kept, "
        "with their holes filled.",
    )
    robustness: NonNegativeInt = Field(
        16,
        description="Number of images, at equal distances in the set, of which changed copies are measured, too: other "
        "aspect ratios, exposures, resolutions and so on, about thirty copies of each. 0: none.",
    )
    confidence: bool = Field(
        True,
        description="Also say which Dice is expected of each mask without the true one. A training job calibrates this "
        "on the validation images and stores it with the model.",
    )
    resamples: PositiveInt = Field(
        2000, description="Number of bootstrap resamples of the patients for the 95 % confidence intervals."
    )
    subgroups: list[str] | None = Field(
        None, description="Columns of the corpus to report subgroups of. By default all columns with 2 to 12 values."
    )


class PlannedSettings(Section):
    """What jobs/plan.py expected of the run, which is compared with what it took."""

    minutes: PositiveFloat | None = Field(None, description="The time of the whole command, minutes.")
    gib: PositiveFloat | None = Field(None, description="The memory of a worker, GiB.")


class Settings(Section):
    """The settings of a run."""

    corpus: Annotated[CorpusSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = CorpusSettings()
    shards: Annotated[ShardSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = ShardSettings()
    corpora: Annotated[list[CorporaSettings], Mark.NOT_SEARCHED] = Field(
        [],
        description="Shards of other corpora whose training images are mixed in, such as phantoms at first: "
        '[{"root": "data/phantom", "share": 0.5, "until": 0.2}]. Validation and test images are those of shards.root.',
    )
    feed: FeedSettings = FeedSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()
    checkpoint: Annotated[CheckpointSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = CheckpointSettings()
    storage: Annotated[StorageSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = StorageSettings()
    runs: Annotated[RunSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = RunSettings()
    evaluate: Annotated[EvaluateSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = EvaluateSettings()
    track: Annotated[TrackSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = TrackSettings()
    planned: Annotated[PlannedSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = PlannedSettings()

    @property
    def images_per_pass(self) -> int:
        """The number of images of a training pass in each of `train.workers`."""
        return self.feed.batch // (self.train.workers * self.train.accumulate)

    @property
    def size_of_epochs(self) -> list[int]:
        """The size of the training images in each epoch, pixels; empty for `feed.size` in all of them."""
        sizes, epochs = self.feed.sizes, self.train.epochs
        return [sizes[epoch * len(sizes) // epochs] for epoch in range(epochs)] if sizes else []

    @property
    def outputs(self) -> tuple[Location, Location]:
        """The folders that jobs write, which may be in that of the corpus."""
        return self.shards.root, self.runs.root

    @model_validator(mode="after")
    def _epochs_fit_sizes(self) -> Settings:
        if len(self.feed.sizes) > self.train.epochs:
            raise ValueError(
                f"feed.sizes has {len(self.feed.sizes)} sizes for train.epochs = {self.train.epochs}; the last ones "
                "would not be trained with: raise train.epochs, or leave some out"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Settings:
        train = self.train
        if train.min_workers > train.workers:
            raise ValueError(f"train.min_workers = {train.min_workers} must not exceed train.workers = {train.workers}")
        for workers in range(train.min_workers or train.workers, train.workers + 1):
            parts = workers * train.accumulate
            if self.feed.batch % parts:
                raise ValueError(
                    f"feed.batch must divide by train.workers x train.accumulate = {parts}, found {self.feed.batch}"
                    + (f"; from train.min_workers on, any number up to {train.workers} must" * bool(train.min_workers))
                )
        for begin in {one.first for one in self.corpora}:
            shares = [one.share for one in self.corpora if one.first <= begin < one.until]
            if sum(shares) > 1:
                raise ValueError(f"corpora: expected shares up to 1 in sum at any time, found {shares}")
        return self
