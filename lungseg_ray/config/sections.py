"""The tree of settings that `--help` prints, that a configuration file may contain, and that a run stores.

The docstrings of the sections and the descriptions of the settings are the texts of `--help` and of docs/settings.md.
"""

from __future__ import annotations

import difflib
import re
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
"""The environment variable with the salt of the keys that replace the paths and patients of DICOM files. It is a secret
and therefore not a setting, because settings are written to files."""
Share = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[Literal[1, 3], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]


def _located(value: object) -> Location:
    """Returns the location that a text names. It is absolute, because workers have another current directory."""
    if isinstance(value, Location):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a path or an s3:// address, found {value!r}")
    return locate(value)


class Roots(tuple[Location, ...]):
    """Several roots of one corpus."""

    __slots__ = ()

    def __str__(self) -> str:
        return " and ".join(map(str, self))


def _located_or_phantom(value: object) -> Location | Roots | Literal["phantom"]:
    if isinstance(value, list | tuple):
        roots = Roots(_located(one) for one in value)
        if not roots or len(set(roots)) < len(roots):
            raise ValueError(f"expected different folders, found {[str(root) for root in roots]}")
        return roots if len(roots) > 1 else roots[0]
    return PHANTOM if value == PHANTOM else _located(value)


def _as_text(value: Location | Roots | str) -> str | list[str]:
    return [str(root) for root in value] if isinstance(value, Roots) else str(value)


def _path(text: str) -> Any:
    """Returns a default that becomes a location when the settings are read, so that `--help` shows it as written."""
    return text


def _mask_value(value: object) -> int | str:
    """Returns a value of a mask as a number, or a colour as `#rrggbb`."""
    text = str(value).strip().lower()
    if text.lstrip("-").isdigit():
        return int(text)
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdigit() and int(part) < 256 for part in parts):
        text = "#{:02x}{:02x}{:02x}".format(*map(int, parts))
    if not re.fullmatch("#[0-9a-f]{6}", text):
        raise ValueError(f"expected a number or a colour such as #ff0000 or 255,0,0, found {value!r}")
    return text


def _known(name: str, names: Sequence[str], kind: str) -> str:
    """Returns the known spelling of a name that may be written in upper or lower case.

    Args:
        name: The name to look up.
        names: The known names.
        kind: What the name is, for the message.

    Raises:
        ValueError: If no known name equals it; the message suggests the nearest one.
    """
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
    # The import takes seconds, because the lists of encoders come from the libraries that build them. The default
    # encoder is known to exist and avoids the import.
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
"""A folder or a file that the user names by a path or an s3:// address. Stored settings contain its address."""
CorpusRoot = Annotated[
    Location | Roots | Literal["phantom"],
    PlainValidator(_located_or_phantom),
    PlainSerializer(_as_text, when_used="json"),
]
MaskValue = Annotated[int | str, PlainValidator(_mask_value)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class PhantomSettings(Section):
    """The synthetic chest X-rays that `corpus.root = phantom` stands for."""

    count: PositiveInt = Field(240, description="Number of X-rays to draw.")
    size: Annotated[int, Field(ge=64, le=4096)] = Field(512, description="Height and width of each X-ray in pixels.")
    seed: Seed = Field(0, description="Seed of the random anatomy. Another seed draws other patients.")


class SplitSettings(Section):
    """The assignment of patients to the splits train, val and test, where the corpus does not prescribe it."""

    val: Share = Field(0.15, description="Share of patients for validation, 0 to 1.")
    test: Share = Field(0.15, description="Share of patients for the test, 0 to 1. The rest is for training.")
    seed: Seed = Field(0, description="Seed of the random assignment of patients to splits.")

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must leave a share for training, found {self.val} + {self.test}")
        return self


class CorpusSettings(Section):
    """The corpus: X-rays, their masks, and how their files are read."""

    root: CorpusRoot = Field(
        PHANTOM,
        description="Folder, s3:// prefix or manifest file; may be given several times, and the name of the folder is "
        "then a group. 'phantom' draws synthetic chest X-rays.",
    )
    layout: Annotated[
        Literal["auto", "pairs", "manifest", "montgomery", "shenzhen", "jsrt", "dicom"], Mark.IN_SHARDS
    ] = Field(
        "auto",
        description="Layout of the files. auto: recognised from the files. pairs: images/ and masks/ with the same "
        "file names but for the suffix, and an optional index.csv. manifest: a CSV or Parquet file. montgomery, "
        "shenzhen, jsrt: as published. dicom: a tree of DICOM files, with masks in masks/.",
    )
    images: Annotated[list[str], Mark.IN_SHARDS] = Field(
        [],
        description="Folders of images below corpus.root, or patterns of their paths such as '*/scans/*.png', where "
        "they have no usual name.",
    )
    masks: Annotated[list[str], Mark.IN_SHARDS] = Field(
        [], description="Folders of masks below corpus.root, or patterns of their paths, where they have no usual name."
    )
    patients: Annotated[str, Mark.IN_SHARDS] = Field(
        "auto",
        description="Whose image each one is. auto: found out from tables, DICOM tags and names. none: each image is "
        "of another patient. Else the column of a table, or a pattern whose group identifies the patient in the path "
        "of an image, such as '([0-9]+)_[0-9]+$'.",
    )
    columns: Annotated[dict[Literal["image", "mask", "patient", "split"], str], Mark.IN_SHARDS] = Field(
        {},
        description="Names of the columns image, mask, patient and split of a table, where they are not usual ones.",
    )
    min_quality: Annotated[Share, Mark.IN_SHARDS] = Field(
        0.0,
        description="Smallest quality of a mask, 0 to 1, where a table says it (CheXmask: Dice RCA (Mean), for which "
        "its authors recommend 0.7). Masks below are left out.",
    )
    outside: Annotated[bool, Mark.IN_SHARDS] = Field(
        False, description="Whether a manifest may name files outside its own folder."
    )
    white: Annotated[PositiveFloat | list[PositiveFloat] | None, Mark.IN_SHARDS] = Field(
        None,
        description="Pixel value of white in 16-bit and float files, such as 4095 for 12 bits. Of several values, a "
        "file has the smallest that it does not exceed. By default found out from some files. DICOM files specify "
        "their own.",
    )
    mask_scale: Annotated[PositiveFloat | Literal["auto"], Mark.IN_SHARDS] = Field(
        "auto",
        description="Height of an image divided by the height of its mask. 2: masks have half the size. auto: found "
        "out from some files; masks that have no common scale are stretched to the size of their image.",
    )
    mask_threshold: Annotated[Share | None, Mark.IN_SHARDS] = Field(
        None,
        description="Share of white, 0 to 1, from which on a pixel of a mask is marked, for masks with smooth or lossy "
        "borders and for probabilities. By default found out from some files.",
    )
    mask_channel: Annotated[Literal["colour", "alpha"], Mark.IN_SHARDS] = Field(
        "colour", description="Where a mask has its shape: in its values or colours, or in its alpha channel."
    )
    channels: Annotated[Channels, Mark.IN_SHARDS] = Field(
        1, description="Channels of the images. 1: grey (the first channel of a colour file). 3: RGB."
    )
    classes: Annotated[PositiveInt, Mark.IN_SHARDS] = Field(
        1, description="Number of classes. 1: one structure and background. k > 1: labels 0 to k - 1, 0 is background."
    )
    class_names: Annotated[list[str], Mark.IN_SHARDS] = Field(
        ["lung"], description="Names of the labels, from label 1 on, for tables and pictures."
    )
    mask_values: Annotated[dict[MaskValue, int | Literal["ignore"]], Mark.IN_SHARDS] = Field(
        {},
        description="Map from the values or colours (#rrggbb) in a mask file to labels. 'ignore' excludes pixels from "
        "loss and figures. By default 0 is background, and 1 and 255 are the structure; with several classes each "
        "value is the label; other masks of two values, or of one colour, are found out from some files.",
    )
    mirror: Annotated[list[tuple[str, str]] | Literal["auto", "none"], Mark.IN_SHARDS] = Field(
        "auto",
        description="Pairs of class names that change places where an image is mirrored, in training and in "
        "prediction. auto: names that differ by left and right. none: no pairs.",
    )
    empty_masks: Annotated[Literal["set_aside", "keep"], Mark.IN_SHARDS] = Field(
        "set_aside",
        description="What to do with an image whose mask has no labelled pixel, or one label in all pixels.",
    )
    about: Annotated[str, Mark.DESCRIPTION] = Field(
        "", description="Description of the data, one sentence, for the model card."
    )
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
        if isinstance(self.mirror, list):
            unknown = [name for pair in self.mirror for name in pair if name not in self.class_names]
            if unknown:
                raise ValueError(f"mirror must name pairs of class_names {self.class_names}, found {unknown}")
        return self

    @property
    def mirrored(self) -> tuple[tuple[int, int], ...]:
        """The pairs of labels that change places where an image is mirrored."""
        label = {name: number for number, name in enumerate(self.class_names, start=1)}
        if isinstance(self.mirror, list):
            return tuple((label[one], label[other]) for one, other in self.mirror)
        if self.mirror == "none":
            return ()
        by_words = {tuple(re.findall("[a-z0-9]+", name.lower())): number for name, number in label.items()}
        pairs = (
            (number, by_words.get(tuple({"left": "right"}.get(word, word) for word in words)))
            for words, number in by_words.items()
            if "left" in words
        )
        return tuple((number, other) for number, other in pairs if other and other != number)

    @property
    def labels(self) -> dict[int, int | Literal["ignore"]]:
        """The label of each value in a mask file: `mask_values`, or the default map for the number of classes."""
        values = {value: label for value, label in self.mask_values.items() if isinstance(value, int)}
        if self.mask_values:
            return values
        return {0: 0, 1: 1, 255: 1} if self.classes == 1 else {label: label for label in range(self.classes)}

    @property
    def colours(self) -> dict[str, int | Literal["ignore"]]:
        """The label of each colour in a mask file, by its name `#rrggbb`."""
        return {value: label for value, label in self.mask_values.items() if isinstance(value, str)}


class ShardSettings(Section):
    """The shards: Parquet files with the images and masks of the corpus, at a limited size."""

    root: Place = Field(_path("data/phantom"), description="Folder or s3:// prefix of the shards.")
    longer_side: Annotated[int, Field(ge=32, le=8192), Mark.IN_SHARDS] = Field(
        1024,
        description="Maximum length of the longer side in pixels. Larger images are reduced to it and keep their "
        "aspect ratio.",
    )
    rows: Annotated[PositiveInt, Mark.IN_SHARDS] = Field(64, description="Images per shard file.")
    max_set_aside: Share = Field(
        0.05, description="Largest share of the files, 0 to 1, that may be unusable. With more of them the job fails."
    )


class FeedSettings(Section):
    """The feed, which turns shards into batches."""

    preset: Annotated[str, AfterValidator(_preset)] = Field(
        "chest", description="Augmentation preset: valid, light, medium or heavy of the recipe, or chest."
    )
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = Field(
        128, description="Height and width of the input of the network, in pixels. The recipes use 256."
    )
    batch: PositiveInt = Field(8, description="Images per optimiser step, over all workers.")
    window: PositiveInt = Field(64, description="Number of shards whose rows are shuffled together.")
    tasks: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Largest number of data tasks at a time for each worker. 0: as many as fit."
    )
    ahead: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        64, description="Number of images that each worker prepares in advance."
    )


class ModelSettings(Section):
    """The segmentation network."""

    architecture: Annotated[str, AfterValidator(_architecture)] = Field(
        "UnetPlusPlus", description="Architecture: Unet, UnetPlusPlus, FPN, DeepLabV3, DeepLabV3Plus, Linknet or MAnet."
    )
    encoder: Annotated[str, AfterValidator(_encoder)] = Field(
        DEFAULT_ENCODER, description="Encoder: any that segmentation_models_pytorch accepts for the architecture."
    )
    weights: Annotated[str, AfterValidator(_absolute_file)] = Field(
        "none",
        description="Initial weights of the encoder alone: imagenet, none (random), or the path of a weights file.",
    )
    start: Annotated[Place | None, Mark.NOT_SEARCHED] = Field(
        None,
        alias="from",
        description="Folder or s3:// prefix of a run, or of an exported model, with whose weights training starts. "
        "Architecture, encoder and feed.size are those of the model. If its classes are others, its head is replaced.",
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
    factor: Share = Field(0.25, description="plateau: factor by which the learning rate is multiplied, 0 to 1.")
    patience: NonNegativeInt = Field(
        10,
        description="plateau: number of epochs without a better validation loss before the learning rate is reduced.",
    )
    warmup: Share = Field(
        0.25, description="one_cycle, cosine: share of the steps, 0 to 1, in which the learning rate rises."
    )
    clip: NonNegativeFloat = Field(1.0, description="Largest norm of the gradient. 0: no clipping.")


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
        "auto", description="Device of the workers. auto: cuda if the cluster has a GPU for each worker, else cpu."
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
    accumulate: PositiveInt = Field(
        1, description="Passes per optimiser step. More passes need less memory for the same batch."
    )
    average: Share = Field(0.0, description="Decay per step of the moving average of the weights. 0: no average.")
    early_stop: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0, description="Number of epochs without a better validation loss after which training stops. 0: never."
    )
    min_workers: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        0,
        description="Smallest number of workers with which training continues while nodes are missing; all "
        "train.workers are used again when the nodes are back. 0: always train.workers.",
    )
    max_failures: Annotated[NonNegativeInt, Mark.MAY_CHANGE, Mark.NOT_SEARCHED] = Field(
        3, description="How often in a row lost workers are restarted without reaching another checkpoint. 0: never."
    )
    max_skipped: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        0, description="Number of steps of a run that may be skipped because loss or gradient is not finite. 0: none."
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


class RunSettings(Section):
    """The folder of the run."""

    root: Place = Field(_path("runs"), description="Folder or s3:// prefix of all runs.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "local", description="Name of the run, a folder in runs.root. The same name resumes the same run."
    )


class EvaluateSettings(Section):
    """The evaluation of a trained model."""

    threshold: Share | None = Field(
        None,
        description="Probability above which a pixel is positive, with one class. "
        "By default the threshold stored with the model, or 0.5 for a new model.",
    )
    batch: PositiveInt = Field(4, description="Images per forward pass.")
    workers: NonNegativeInt = Field(0, description="Largest number of evaluation processes. 0: as many as fit.")
    clean_up: bool = Field(
        True,
        description="Also report figures for masks of which only the two largest components of each label are kept, "
        "with their holes filled.",
    )
    resamples: PositiveInt = Field(
        2000, description="Number of bootstrap resamples of the patients for the 95 % confidence intervals."
    )
    subgroups: list[str] | None = Field(
        None, description="Columns of the corpus to report subgroups of. By default all columns with 2 to 12 values."
    )

    @property
    def first_threshold(self) -> float:
        """The threshold that is stored with a newly trained model."""
        return 0.5 if self.threshold is None else self.threshold


class Settings(Section):
    """The settings of a run."""

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
