"""The one tree of settings: what `--help` prints, what a configuration file may say, and what a run keeps."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from lungseg_ray.config.tree import Mark, Section
from lungseg_ray.errors import UserError
from lungseg_ray.names import ARCHITECTURES, PRESETS
from lungseg_ray.storage import PATIENCE_SECONDS, Location, locate

ENVIRONMENT_PREFIX = "LUNGSEG_"
SALT = f"{ENVIRONMENT_PREFIX}SALT"
"""A secret, and so no setting: settings are written down."""
Share = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[Literal[1, 3], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]


def _located(value: object) -> Location:
    """The place that a text names. It is absolute, since the workers of a job have another current directory."""
    if isinstance(value, Location):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a path or an s3:// address, found {value!r}")
    return locate(value)


def _located_or_phantom(value: object) -> Location | Literal["phantom"]:
    return PHANTOM if value == PHANTOM else _located(value)


def _path(text: str) -> Any:
    """A default that becomes a place when the settings are read, so that `--help` shows it as it is written here."""
    return text


def _known(name: str, names: Sequence[str], kind: str) -> str:
    """The spelling of a name that may be written in any case."""
    by_lower = {known.lower(): known for known in names}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    meant = f" Did you mean {by_lower[near[0]]}?" if near else ""
    raise ValueError(f"there is no {kind} {name!r}.{meant} Expected one of {', '.join(names)}.")


def _architecture(name: str) -> str:
    return _known(name, ARCHITECTURES, "architecture")


def _preset(name: str) -> str:
    return _known(name, PRESETS, "augmentation preset")


@lru_cache(maxsize=256)
def _encoder(name: str) -> str:
    if name == DEFAULT_ENCODER:
        return name
    # Takes seconds, since the lists of encoders are those of the libraries that build them. The default needs no look.
    from lungseg_ray.models.factory import known_encoder

    try:
        return known_encoder(name)
    except UserError as error:
        raise ValueError(str(error)) from None


def _absolute_file(text: str) -> str:
    return str(Path(text).absolute()) if Path(text).is_file() else text


PHANTOM: Final = "phantom"
DEFAULT_ENCODER = "timm-regnety_004"
Device = Literal["auto", "cpu", "cuda"]
Flips = Literal["none", "horizontal", "all"]
Place = Annotated[Location, PlainValidator(_located), PlainSerializer(str, when_used="json")]
"""A folder or a file that a user names by a path or an address; written down as its address."""
CorpusRoot = Annotated[
    Location | Literal["phantom"], PlainValidator(_located_or_phantom), PlainSerializer(str, when_used="json")
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class PhantomSettings(Section):
    """The synthetic chests that `corpus.root = phantom` stands for."""

    count: PositiveInt = Field(240, description="How many X-rays to draw.")
    size: Annotated[int, Field(ge=64, le=4096)] = Field(512, description="Height and width in pixels.")
    seed: Seed = Field(0, description="Another seed, other patients.")


class SplitSettings(Section):
    """How patients are dealt to the three sides where the corpus does not say it."""

    val: Share = Field(0.15, description="Share of patients for validation.")
    test: Share = Field(0.15, description="Share of patients for the test.")
    seed: Seed = Field(0, description="Another seed, another deal.")

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must leave a share for training, found {self.val} + {self.test}")
        return self


class CorpusSettings(Section):
    """Where X-rays and masks come from."""

    root: CorpusRoot = Field(
        PHANTOM, description="Folder, s3:// prefix or manifest file; 'phantom' draws synthetic chests."
    )
    layout: Annotated[
        Literal["auto", "pairs", "manifest", "montgomery", "shenzhen", "jsrt", "dicom"], Mark.IN_SHARDS
    ] = Field(
        "auto",
        description="pairs: images/ and masks/ by stem, optional index.csv. manifest: a CSV or Parquet file. "
        "montgomery, shenzhen, jsrt: as published. dicom: a tree of DICOM files, masks in masks/.",
    )
    outside: Annotated[bool, Mark.IN_SHARDS] = Field(
        False, description="Whether a manifest may name files outside its own folder."
    )
    white: Annotated[PositiveFloat | None, Mark.IN_SHARDS] = Field(
        None,
        description="Pixel value of white in 16-bit and float files, such as 4095 for 12 bits; "
        "by default 65535, and 1.0 for floats. DICOM files say it themselves.",
    )
    mask_scale: Annotated[PositiveFloat, Mark.IN_SHARDS] = Field(
        1.0, description="Rows of an image for each row of its mask; 2: half the size."
    )
    channels: Annotated[Channels, Mark.IN_SHARDS] = Field(
        1, description="1: grey (a colour file's first channel). 3: RGB."
    )
    classes: Annotated[PositiveInt, Mark.IN_SHARDS] = Field(
        1, description="1: one structure. k > 1: k labels, of which 0 is background."
    )
    class_names: Annotated[list[str], Mark.IN_SHARDS] = Field(
        ["lung"], description="Names of the labels from 1 on, for tables and pictures."
    )
    mask_values: Annotated[dict[int, int | Literal["ignore"]], Mark.IN_SHARDS] = Field(
        {},
        description="Label of each value in a mask file; 'ignore' leaves the pixel out. "
        "By default 0 is background, 1 and 255 are the structure; with several classes a value is its own label.",
    )
    empty_masks: Annotated[Literal["set_aside", "keep"], Mark.IN_SHARDS] = Field(
        "set_aside", description="What to do with a mask that marks nothing, or every pixel alike."
    )
    about: Annotated[str, Mark.DESCRIPTION] = Field("", description="A sentence on the data, for the model card.")
    licence: Annotated[str, Mark.DESCRIPTION] = Field("", description="Licence of the data, for the model card.")
    split: Annotated[SplitSettings, Mark.IN_SHARDS] = SplitSettings()
    phantom: Annotated[PhantomSettings, Mark.IN_SHARDS] = PhantomSettings()

    @model_validator(mode="after")
    def _labels_fit(self) -> CorpusSettings:
        labels = max(self.classes - 1, 1)
        if len(self.class_names) != labels:
            raise ValueError(f"class_names must name {labels} label(s), found {self.class_names}")
        wrong = {
            value: label for value, label in self.mask_values.items() if label not in ("ignore", *range(labels + 1))
        }
        if wrong:
            raise ValueError(f"mask_values must map to labels 0 to {labels} or 'ignore', found {wrong}")
        return self

    @property
    def labels(self) -> dict[int, int | Literal["ignore"]]:
        """Label of each value in a mask file: the configured map, or the usual one for the number of classes."""
        if self.mask_values:
            return self.mask_values
        return {0: 0, 1: 1, 255: 1} if self.classes == 1 else {label: label for label in range(self.classes)}


class ShardSettings(Section):
    """What a shard holds."""

    root: Place = Field(_path("data/phantom"), description="Folder or s3:// prefix of the Parquet shards.")
    longer_side: Annotated[int, Field(ge=32, le=8192), Mark.IN_SHARDS] = Field(
        1024, description="Images larger than this, in pixels, are reduced to it; the aspect stays."
    )
    rows: Annotated[PositiveInt, Mark.IN_SHARDS] = Field(64, description="Images per shard file.")
    max_set_aside: Share = Field(0.05, description="Fail when a larger share of the files cannot be used.")


class FeedSettings(Section):
    """How shards become batches."""

    preset: Annotated[str, AfterValidator(_preset)] = Field(
        "chest", description="Augmentation: valid, light, medium, heavy (the recipe's) or chest."
    )
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = Field(
        128, description="Height and width that the network sees, in pixels; the recipes use 256."
    )
    batch: PositiveInt = Field(8, description="Images that one step of the optimiser sees, over all workers.")
    window: PositiveInt = Field(64, description="Shards whose rows are shuffled together.")
    tasks: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Data tasks at a time for each worker; 0: as many as fit."
    )
    ahead: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        64, description="Images that each worker keeps ready."
    )


class ModelSettings(Section):
    """The network."""

    architecture: Annotated[str, AfterValidator(_architecture)] = Field(
        "UnetPlusPlus", description="Unet, UnetPlusPlus, FPN, DeepLabV3(Plus), Linknet or MAnet."
    )
    encoder: Annotated[str, AfterValidator(_encoder)] = Field(
        DEFAULT_ENCODER, description="Any encoder that segmentation_models_pytorch accepts for it."
    )
    weights: Annotated[str, AfterValidator(_absolute_file)] = Field(
        "none", description="Encoder weights to start from: imagenet, none, or a weights file."
    )


class LossSettings(Section):
    """Weights of the two parts of the loss."""

    dice: NonNegativeFloat = Field(1.0, description="Weight of the Dice loss.")
    bce: NonNegativeFloat = Field(0.8, description="Weight of the (binary) cross-entropy.")


class OptimSettings(Section):
    """Optimiser, learning rates and their schedule."""

    name: Literal["radam", "adamw"] = Field("radam", description="Both with decoupled weight decay.")
    lr: PositiveFloat = Field(3e-3, description="Learning rate of decoder and head.")
    encoder_lr: PositiveFloat = Field(3e-3, description="Learning rate of the encoder.")
    weight_decay: NonNegativeFloat = Field(1e-2, description="Weight decay of decoder and head; biases have none.")
    encoder_weight_decay: NonNegativeFloat = Field(1e-2, description="Weight decay of the encoder; biases have none.")
    lookahead_k: NonNegativeInt = Field(5, description="Lookahead: steps between two pulls; 0: no Lookahead.")
    lookahead_alpha: Share = Field(0.5, description="Lookahead: how far a pull goes.")
    schedule: Literal["plateau", "one_cycle", "cosine", "constant"] = Field(
        "one_cycle",
        description="plateau: by validation loss. one_cycle, cosine: by step, over the run.",
    )
    factor: Share = Field(0.25, description="plateau: the rate is multiplied by this.")
    patience: NonNegativeInt = Field(10, description="plateau: epochs without a better validation loss to wait for.")
    warmup: Share = Field(0.25, description="one_cycle, cosine: share of the steps in which the rate rises.")
    clip: NonNegativeFloat = Field(1.0, description="Largest norm of the gradient; 0: no clipping.")


class TrainSettings(Section):
    """The training loop."""

    epochs: Annotated[PositiveInt, Mark.NOT_SEARCHED] = Field(10, description="Passes over the training images.")
    seed: Annotated[Seed, Mark.NOT_SEARCHED] = Field(0, description="Weights, order and augmentation follow from it.")
    workers: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        1, description="Training processes; the batch is dealt among them."
    )
    device: Annotated[Device, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        "auto", description="auto: cuda if there is a GPU for each worker."
    )
    threads: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="CPU threads of each worker; 0: cores / workers."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: the faster of fp32 and bf16 in a short probe; the choice is kept on resume."
    )
    channels_last: bool = Field(True, description="Memory layout; faster on most devices.")
    accumulate: PositiveInt = Field(1, description="Passes that share a step, so that a batch fits in memory.")
    average: Share = Field(0.0, description="Decay of the moving average of the weights, per step; 0: none.")
    early_stop: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Stop after so many epochs without a better one; 0: never."
    )
    min_workers: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0,
        description="Go on with as few as this while nodes are missing, and with train.workers again when they are "
        "back; 0: always train.workers.",
    )
    max_failures: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        3, description="How often in a row lost workers are started again without reaching another checkpoint."
    )
    max_skipped: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        0, description="Steps to leave out, in the whole run, because their loss or gradient is not a number."
    )
    stall_seconds: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        600, description="End the job when nothing has moved for so long."
    )


class CheckpointSettings(Section):
    """What is kept while a run goes on."""

    keep: PositiveInt = Field(2, description="How many of the best checkpoints to keep, beside the latest two.")
    every_steps: NonNegativeInt = Field(
        0, description="Also keep one after so many steps within an epoch; 0: at the end of each epoch alone."
    )


class StorageSettings(Section):
    """Disks and buckets."""

    patience_seconds: NonNegativeInt = Field(
        PATIENCE_SECONDS,
        description="How long a running job tries again when a bucket does not answer, or a checkpoint finds no room.",
    )


class RunSettings(Section):
    """Where the run is kept."""

    root: Place = Field(_path("runs"), description="Folder or s3:// prefix of all runs.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "local", description="The run's folder; the same name goes on with the same run."
    )


class EvaluateSettings(Section):
    """How a trained model is measured."""

    threshold: Share | None = Field(
        None, description="Probability above which a pixel is positive (one class); else the model's own, first 0.5."
    )
    batch: PositiveInt = Field(4, description="Images per forward pass.")
    workers: NonNegativeInt = Field(0, description="Processes; 0: as many as fit.")
    clean_up: bool = Field(True, description="Report beside it: the two largest components alone, holes filled.")
    resamples: PositiveInt = Field(2000, description="Bootstrap resamples of the patients, for the 95 % intervals.")
    subgroups: list[str] | None = Field(None, description="Columns to report apart; else all with 2 to 12 values.")

    @property
    def first_threshold(self) -> float:
        """The threshold that a model leaves training with."""
        return 0.5 if self.threshold is None else self.threshold


class Settings(Section):
    """Everything that shapes a run."""

    corpus: Annotated[CorpusSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = CorpusSettings()
    shards: Annotated[ShardSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = ShardSettings()
    feed: FeedSettings = FeedSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()
    checkpoint: Annotated[CheckpointSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = CheckpointSettings()
    storage: Annotated[StorageSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = StorageSettings()
    runs: Annotated[RunSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = RunSettings()
    evaluate: Annotated[EvaluateSettings, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = EvaluateSettings()

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
        return self
