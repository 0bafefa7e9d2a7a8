"""The settings of a corpus: which files it has, how they are read, and how its patients are split."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lungseg_ray.config.tree import Mark, Section
from lungseg_ray.config.values import PHANTOM, Channels, CorpusRoot, MaskValue, OneOrSeveral, Seed, Share
from lungseg_ray.names import BACKGROUND_NAMES
from lungseg_ray.numerics.labels import IGNORE_LABEL

_UNIT = "mm"
"""Tables have columns such as `hd95_NAME` for each class, and `hd95_mm`."""


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
        Literal["auto", "pairs", "manifest", "montgomery", "shenzhen", "jsrt", "dicom"], Mark.IN_SHARDS, Mark.OF_FILES
    ] = Field(
        "auto",
        description="Layout of the files. auto: recognised from the files. pairs: images and masks "
        "in folders of usual names, named alike, or annotations. manifest: a table (CSV, TSV, Excel or Parquet). "
        "montgomery, shenzhen, jsrt: as published. dicom: a tree of DICOM files, with masks in masks/.",
    )
    images: Annotated[list[str], Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        [],
        description="Folders of images below corpus.root, or patterns of their paths such as '*/scans/*.png', where "
        "they have no usual name.",
    )
    masks: Annotated[list[str], Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        [], description="Folders of masks below corpus.root, or patterns of their paths, where they have no usual name."
    )
    patients: Annotated[str, Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        "auto",
        description="Whose image each one is. auto: found out from tables, DICOM tags and names. none: each image is "
        "of another patient. Else the column of a table, or a pattern whose group identifies the patient in the path "
        "of an image, such as '([0-9]+)_[0-9]+$'.",
    )
    columns: Annotated[dict[Literal["image", "mask", "patient", "split"], str], Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        {},
        description="Names of the columns image, mask, patient and split of a table, where they are not usual ones.",
    )
    min_quality: Annotated[Share, Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        0.0,
        description="Smallest quality of a mask, 0 to 1, where a table says it (CheXmask: Dice RCA (Mean), for which "
        "its authors recommend 0.7). Masks below are left out.",
    )
    outside: Annotated[bool, Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        False, description="Whether a manifest may name files outside its own folder."
    )
    white: Annotated[PositiveFloat | list[PositiveFloat] | None, OneOrSeveral, Mark.IN_SHARDS, Mark.FOUND] = Field(
        None,
        description="Pixel value of white in 16-bit and float files, such as 4095 for 12 bits. Of several values, a "
        "file has the smallest that it does not exceed. By default found out from some files. DICOM files specify "
        "their own.",
    )
    mask_scale: Annotated[
        PositiveFloat | list[PositiveFloat] | Literal["auto", "stretch"],
        OneOrSeveral,
        Mark.IN_SHARDS,
        Mark.OF_FILES,
        Mark.FOUND,
    ] = Field(
        "auto",
        description="Height of an image divided by the height of its mask. 2: masks have half the size. Of several, a "
        "mask has the one that fits. auto: found out from some files; masks of many scales are stretched to the size "
        "of their image. stretch: all are, also where their sides have other proportions.",
    )
    mask_threshold: Annotated[Share | None, Mark.IN_SHARDS, Mark.OF_FILES, Mark.FOUND] = Field(
        None,
        description="Share of white, 0 to 1, from which on a pixel of a mask is marked, for masks with smooth or lossy "
        "borders and for probabilities. By default found out from some files.",
    )
    mask_channel: Annotated[Literal["colour", "alpha"], Mark.IN_SHARDS, Mark.OF_FILES, Mark.FOUND] = Field(
        "colour", description="Where a mask has its shape: in its values or colours, or in its alpha channel."
    )
    channels: Annotated[Channels, Mark.IN_SHARDS] = Field(
        1, description="Channels of the images. 1: grey (the first channel of a colour file). 3: RGB."
    )
    classes: Annotated[int, Field(ge=1, le=IGNORE_LABEL), Mark.IN_SHARDS] = Field(
        1, description="Number of classes. 1: one structure and background. k > 1: labels 0 to k - 1, 0 is background."
    )
    class_names: Annotated[list[str], Mark.IN_SHARDS] = Field(
        ["lung"], description="Names of the labels, from label 1 on, for tables and pictures."
    )
    mask_values: Annotated[dict[MaskValue, int | Literal["ignore"]], Mark.IN_SHARDS, Mark.OF_FILES, Mark.FOUND] = Field(
        {},
        description="Map from the values or colours (#rrggbb) in a mask file to labels. 'ignore' excludes pixels from "
        "loss and figures. By default 0 is background, and 1 and 255 are the structure; with several classes each "
        "value is the label; other masks of two values, or of one colour, are found out from some files.",
    )
    unite: Annotated[bool | None, Mark.IN_SHARDS, Mark.OF_FILES] = Field(
        None,
        description="Whether structures that masks distinguish by files, names or values (left and right lung) are "
        "one. false: each is a class, and classes and class_names are found out where they are not set. By default "
        "files are united, and values are asked for.",
    )
    structures: Annotated[list[str], Mark.IN_SHARDS, Mark.OF_FILES, Mark.FOUND] = Field(
        [],
        description="Names of the structures in annotations that count as the only class. By default those that share "
        "a word with its name; if none does, all but known other organs and findings.",
    )
    mirror: Annotated[list[tuple[str, str]] | Literal["auto", "none"], OneOrSeveral, Mark.IN_SHARDS] = Field(
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
        plain = Counter(name.strip().casefold() for name in self.class_names)
        alike = [name for name in self.class_names if plain[name.strip().casefold()] > 1]
        if alike or "" in plain or _UNIT in plain:
            raise ValueError(
                f"class_names must differ by more than capitals, and none may be empty or {_UNIT!r}, which columns of "
                f"figures have in their names, found {self.class_names}"
            )
        if background := [name for name in plain if name.strip("_- ") in BACKGROUND_NAMES]:
            raise ValueError(
                f"class_names are those of the labels from 1 on, without the background, which is label 0, found "
                f"{background[0]!r}"
            )
        wrong = {
            value: label for value, label in self.mask_values.items() if label not in ("ignore", *range(labels + 1))
        }
        if wrong:
            raise ValueError(f"mask_values must map to labels 0 to {labels} or 'ignore', found {wrong}")
        if isinstance(self.mirror, list):
            unknown = [name for pair in self.mirror for name in pair if name not in self.class_names]
            if unknown:
                raise ValueError(f"mirror must name pairs of class_names {self.class_names}, found {unknown}")
            twice = [
                name for name, count in Counter(name for pair in self.mirror for name in pair).items() if count > 1
            ]
            if twice:
                raise ValueError(f"mirror must name each class once, found {twice} more than once")
        return self

    @property
    def mask_scales(self) -> tuple[float, ...]:
        """The rows of an image for each row of its mask, before any file is looked at; empty if masks are stretched."""
        if isinstance(self.mask_scale, str):
            return (1.0,) if self.mask_scale == "auto" else ()
        return tuple(self.mask_scale) if isinstance(self.mask_scale, list) else (self.mask_scale,)

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
