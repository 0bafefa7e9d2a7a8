"""The exported model of a run, the folder `best/`: its weights, its preprocessing and its model card."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from segmentation_models_pytorch.base import SegmentationModel
from torch import nn

from lungseg_ray import models
from lungseg_ray.errors import UserError
from lungseg_ray.names import Fit, Flips
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import Location

SIDECAR = "preprocessing.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
CONFIDENCE = "confidence.json"


class Sidecar(BaseModel):
    """The content of `preprocessing.json`: what is needed, besides the weights, to use a model.

    Attributes:
        size: Height and width of the input of the network, pixels. Images are resized to it bilinearly.
        fit: How an image that is not square becomes so.
        scale: The number by which pixel values are divided.
        normalise: Whether each image gets mean 0 and standard deviation 1 after that.
        channels: The number of channels of the input: 1 (grey: the first channel of a colour file) or 3 (RGB).
        longer_side: The maximum length of the longer side, pixels. Larger images are first reduced to it by area
            averaging.
        classes: The number of output channels. With 1, the probability is the sigmoid of the logit, and `threshold`
            decides. With more, it is the softmax of the logits, and the largest one decides.
        class_names: The names of the labels from 1 on.
        threshold: The probability above which a pixel is positive, 0 to 1; only for one output channel.
        white: The pixel value of white in 16-bit and float files, or several of which a file has the smallest that it
            does not exceed; None for the maximum of the format.
        mirrored: Pairs of labels that change places where an image is mirrored.
        flips: The mirror images over which the probability is averaged, unless others are asked for.
        clean_up: Whether only the two largest components of each label are kept, with their holes filled, unless
            something else is asked for.
    """

    model_config = ConfigDict(frozen=True)
    size: Annotated[int, Field(ge=1, le=1 << 14)]
    fit: Fit = "stretch"
    scale: Annotated[float, Field(gt=0, le=1e9)] = 255.0
    normalise: bool = False
    channels: Literal[1, 3]
    longer_side: Annotated[int, Field(ge=1, le=1 << 16)]
    classes: Annotated[int, Field(ge=1, le=255)]
    class_names: list[str]
    threshold: Annotated[float, Field(ge=0, le=1)]
    white: float | list[float] | None = None
    mirrored: list[tuple[int, int]] = []
    flips: Flips = "none"
    clean_up: bool = False

    @model_validator(mode="after")
    def _labels_exist(self) -> Sidecar:
        labels = max(self.classes - 1, 1)
        if len(self.class_names) != labels:
            raise ValueError(f"expected names of {labels} labels, found {len(self.class_names)}")
        if any(not 1 <= label <= labels for pair in self.mirrored for label in pair):
            raise ValueError(f"mirrored: expected labels from 1 to {labels}, found {self.mirrored}")
        return self


def save_model(place: Location, model: nn.Module, sidecar: Sidecar, card: str) -> None:
    """Writes a folder that `segmentation_models_pytorch.from_pretrained` can open, with sidecar and model card.

    Args:
        place: The folder to write.
        model: The model, not wrapped, on any device.
        sidecar: The sidecar of the model.
        card: The model card, Markdown.

    Raises:
        OSError: If the folder for temporary files is full, or if a file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        try:
            models.export(model, Path(folder))
            (Path(folder) / SIDECAR).write_text(sidecar.model_dump_json(indent=2) + "\n")
            (Path(folder) / CARD).write_text(card)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"{tempfile.gettempdir()}: the exported model cannot be written into the folder for temporary files "
                f"({error}). Make room there, or set TMPDIR to another folder; the same command resumes."
            ) from error
        for file in sorted(Path(folder).iterdir()):
            (place / file.name).write_bytes(file.read_bytes())


def find_export(place: Location) -> Location:
    """Returns the folder of the exported model of a run.

    Args:
        place: The folder of the run, or of the exported model itself.

    Raises:
        UserError: If there is no exported model in either.
        OSError: If a bucket cannot be used.
    """
    for folder in (place / BEST, place):
        if (folder / SIDECAR).exists():
            return folder
    raise UserError(
        f"{place}: expected a finished run, or the folder of its model ({BEST}/), found no {SIDECAR} in either."
    )


def weights_sha256(place: Location) -> str:
    """Returns the SHA-256 of a model's weights, hexadecimal, by which what was made with it names it.

    Args:
        place: A folder that `save_model` wrote.

    Raises:
        FileNotFoundError: If there are no weights.
        OSError: If the file cannot be read; a `StorageError` for a bucket.
    """
    return hashlib.sha256((place / WEIGHTS).read_bytes()).hexdigest()


def read_sidecar(place: Location) -> Sidecar:
    """Reads the sidecar in a folder that `save_model` wrote.

    Args:
        place: The folder.

    Raises:
        UserError: If the folder does not exist or is not complete, or if the file holds something else.
        OSError: If the file cannot be read; a `StorageError` for a bucket.
    """
    try:
        return Sidecar.model_validate_json((place / SIDECAR).read_text())
    except FileNotFoundError:
        raise UserError(f"{place}: no trained model here ({SIDECAR} is missing). Is the run finished?") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{place / SIDECAR}: cannot be read: {error}") from None


def open_model(place: Location) -> tuple[SegmentationModel, Sidecar]:
    """Opens a folder that `save_model` wrote.

    Args:
        place: The folder.

    Returns:
        The model in evaluation mode on the CPU, and its sidecar.

    Raises:
        UserError: If the folder does not exist or is not complete, or if its files do not fit together.
        OSError: If a file cannot be read; a `StorageError` for a bucket.
    """
    sidecar = read_sidecar(place)
    if place.is_local:
        return models.load_export(Path(place.path)), sidecar
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        place.download(Path(folder))
        return models.load_export(Path(folder)), sidecar
