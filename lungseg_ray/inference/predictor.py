"""The use of exported models: from images to probabilities and label maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lungseg_ray.config import differences
from lungseg_ray.errors import UserError
from lungseg_ray.imaging import Pixels, limited, resize_area, resize_image
from lungseg_ray.inference.whole import WholeNetwork
from lungseg_ray.names import Fit, Flips
from lungseg_ray.numerics.metrics import clean_up_labels
from lungseg_ray.run.exported import Sidecar, open_model, read_sidecar
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.storage import Location

ALIKE = {"channels", "longer_side", "classes", "class_names", "white", "mirrored", "flips", "clean_up"}
"""The attributes of `Sidecar` that must be equal for models that are averaged."""

BATCH = {"cpu": 4, "cuda": 16}
"""The images of a forward pass by the type of the device, where no number is asked for."""

Probability = npt.NDArray[np.float32]


class Processing:
    """What happens to images before the networks and to their maps after them, on a CPU.

    Args:
        sidecars: The sidecar of each model, at least one.

    Attributes:
        sidecar: The sidecar of the first model, with the mean of the thresholds of all models.
    """

    def __init__(self, sidecars: Sequence[Sidecar]) -> None:
        threshold = fmean(side.threshold for side in sidecars)
        self.sidecar = sidecars[0].model_copy(update={"threshold": threshold})
        self._sidecars = list(sidecars)

    def inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        """Resizes images for the networks.

        Args:
            images: The images, each (H, W, channels) uint8. Their sizes may differ.

        Returns:
            For each model, (N, size, size, channels) uint8.
        """
        return [
            np.stack([resize_image(image, side.size, fit=side.fit) for image in images])
            if images
            else np.empty((0, side.size, side.size, side.channels), np.uint8)
            for side in self._sidecars
        ]

    def combine(self, maps: Sequence[Probability], sizes: Sequence[tuple[int, int]]) -> Iterator[Probability]:
        """Resizes the maps of the models, and averages them.

        Args:
            maps: For each model, (N, size, size, K) float32.
            sizes: (height, width) of the result for each image, pixels.

        Yields:
            For each image (height, width, K) float32, 0 to 1: K = 1 for one class, otherwise one channel for each
            label. One at a time, since those of many large images need much memory.
        """
        fits = [side.fit for side in self._sidecars]
        for *of_image, size in zip(*maps, sizes, strict=True):
            sum_ = _sized(of_image[0], size, fits[0])
            for other, fit in zip(of_image[1:], fits[1:], strict=True):
                sum_ += _sized(other, size, fit)
            if len(of_image) > 1:
                sum_ /= len(of_image)
            yield sum_

    def labels(
        self, probability: Probability, *, threshold: float | None = None, clean_up: bool | None = None
    ) -> npt.NDArray[np.uint8]:
        """Converts a probability map to a label map.

        Args:
            probability: (H, W, K) float32, as `__call__` returns it.
            threshold: For one class, the probability above which a pixel is positive, 0 to 1; by default that of the
                sidecar. For several classes, it is not used.
            clean_up: Whether to keep only the two largest components of each label; by default as the sidecar says.

        Returns:
            (H, W) uint8 label map; label 0 is the background.
        """
        side = self.sidecar
        if side.classes == 1:
            bound = side.threshold if threshold is None else threshold
            found = (probability[:, :, 0] > bound).view(np.uint8)
        else:
            found = probability.argmax(axis=2).astype(np.uint8)
        if side.clean_up if clean_up is None else clean_up:
            return clean_up_labels(found, classes=len(side.class_names))
        return found


class Predictor(Processing):
    """One or several models with their preprocessing, used as one model.

    Its probability is the mean of the probabilities of all models, each of them averaged over the mirror images. On
    GPUs that have bf16, the networks compute in it.

    Args:
        members: The models, at least one, each with its sidecar.
        flips: The mirror images that are averaged over; by default those of the sidecar.
        device: The device to compute on.

    Attributes:
        device: The device that the models compute on.
        networks: The networks of the models, in evaluation mode on the device.
    """

    def __init__(
        self,
        members: Sequence[tuple[nn.Module, Sidecar]],
        *,
        flips: Flips | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__([side for _, side in members])
        self.device = torch.device(device)
        used = flips or self.sidecar.flips
        self.networks = [WholeNetwork(model, side, flips=used).to(self.device).eval() for model, side in members]
        self._bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Probability]:
        """Computes the probability maps of images.

        Args:
            images: The images, at least one, each (H, W, channels) uint8. Their sizes may differ.
            sizes: (height, width) of the result for each image, pixels; by default the size of the image.

        Returns:
            As `combine`.
        """
        return list(self.combine(self.maps(self.inputs(images)), sizes or [image.shape[:2] for image in images]))

    @torch.inference_mode()
    def maps(self, inputs: Sequence[npt.NDArray[np.uint8]], *, batch: int | None = None) -> list[Probability]:
        """Computes the probability maps of resized images.

        Args:
            inputs: The images for each model, as `inputs` returns them.
            batch: The images of a forward pass; by default 4 on a CPU and 16 on a GPU.

        Returns:
            For each model, (N, size, size, K) float32, 0 to 1.
        """
        return [
            self._in_batches(partial(self._pass, network), images, batch)
            if len(images)
            else np.empty((0, *images.shape[1:3], self.sidecar.classes), np.float32)
            for network, images in zip(self.networks, inputs, strict=True)
        ]

    @torch.inference_mode()
    def features(self, images: npt.NDArray[np.uint8], *, batch: int | None = None) -> npt.NDArray[np.float32]:
        """Computes the deepest features of the first model's encoder, which are alike for images that are alike.

        Args:
            images: (N, size, size, channels) uint8, as `inputs` returns them for the first model.
            batch: The images of a forward pass; by default 4 on a CPU and 16 on a GPU.

        Returns:
            (N, F) float32, the mean of each feature over the image.
        """
        if not len(images):
            return np.empty((0, 0), np.float32)
        return self._in_batches(partial(self._encode, self.networks[0]), images, batch)

    def _tensor(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Returns images on the device."""
        # A copy, since what comes from another process is read-only.
        stack = torch.tensor(images)
        if self.device.type == "cuda":
            stack = stack.pin_memory()
        return stack.to(self.device, non_blocking=True)

    def _in_batches(self, run: Callable[[Pixels], Probability], images: Pixels, batch: int | None) -> Probability:
        step = batch or BATCH.get(self.device.type, BATCH["cpu"])
        parts = [images[first : first + step] for first in range(0, len(images), step)]
        return np.concatenate([self._halved(run, part) for part in parts])

    def _halved(self, run: Callable[[Pixels], Probability], images: Pixels) -> Probability:
        """Runs a network, in smaller batches where the memory of the device is too small."""
        try:
            return run(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        # Memory is free again only after the exception is gone.
        torch.cuda.empty_cache()
        half = len(images) // 2
        return np.concatenate([self._halved(run, part) for part in (images[:half], images[half:])])

    def _encode(self, network: WholeNetwork, images: Pixels) -> Probability:
        encoder: Any = network.network.encoder
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            found = encoder(network.scaled(self._tensor(images)))[-1]
        encoded: Probability = found.float().mean(dim=(2, 3)).cpu().numpy()
        return encoded

    def _pass(self, network: WholeNetwork, images: npt.NDArray[np.uint8]) -> Probability:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            found: Probability = network(self._tensor(images)).cpu().numpy()
        return found

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Predicts the label map of one image, at the size of the image.

        Args:
            image: (H, W) grey or (H, W, C) uint8, with the number of channels that the model was trained on.

        Returns:
            (H, W) uint8 label map; label 0 is the background.

        Raises:
            UserError: If the image has another dtype, another number of dimensions, or another number of channels.
        """
        pixels = image[:, :, None] if image.ndim == 2 else image
        channels = self.sidecar.channels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
            raise UserError(
                f"Expected an image (H, W, {channels}) of uint8, found {image.shape} of {image.dtype}. Scale its "
                "values to 0 to 255, and give it the channels that the model was trained on."
            )
        height, width = pixels.shape[:2]
        small = resize_area(pixels, *limited(height, width, longer_side=self.sidecar.longer_side))
        (probability,) = self([small.reshape(*small.shape[:2], channels)], [(height, width)])
        return self.labels(probability)


def _sized(probability: Probability, size: tuple[int, int], fit: Fit) -> Probability:
    """Resizes a map (h, w, K) to (height, width, K), without the borders of an image that was padded to a square."""
    height, width = size
    if fit == "pad" and height != width:
        side = max(height, width)
        # Each new pixel is sampled where it is in the padded square.
        rows, columns = (
            (np.arange(length) + (side - length) // 2 + 0.5) * (of_map / side) - 0.5
            for length, of_map in zip(size, probability.shape[:2], strict=True)
        )
        across, down = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
        sized = cv2.remap(probability, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    else:
        sized = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    return sized.reshape(height, width, probability.shape[2])


@lru_cache(maxsize=1)
def load_predictor(*places: Location, flips: Flips | None = None, device: str = "cpu") -> Predictor:
    """Opens folders that `save_model` wrote, as one model. The last result is cached in the process.

    Args:
        places: The folders, at least one.
        flips: The mirror images that are averaged over; by default those of the sidecar.
        device: The device to compute on.

    Returns:
        The models as one predictor.

    Raises:
        UserError: If a folder does not exist or is not complete, if its files do not fit together, or if the models
            cannot be averaged.
        OSError: If a file cannot be read; a `StorageError` for a bucket.
    """
    members = [open_model(place) for place in places]
    _check_alike(places, [side for _, side in members], flips=flips)
    return Predictor(members, flips=flips, device=device)


@lru_cache(maxsize=1)
def load_processing(*places: Location, flips: Flips | None = None) -> Processing:
    """Reads what is needed of exported models around the networks. The last result is cached in the process.

    Args:
        places: The folders of the models, at least one.
        flips: The mirror images that are averaged over; by default those of the sidecar.

    Raises:
        UserError: As `load_predictor`.
        OSError: If a file cannot be read; a `StorageError` for a bucket.
    """
    sidecars = [read_sidecar(place) for place in places]
    _check_alike(places, sidecars, flips=flips)
    return Processing(sidecars)


def _check_alike(places: Sequence[Location], sidecars: Sequence[Sidecar], *, flips: Flips | None = None) -> None:
    """Raises a `UserError` if models cannot be averaged, with the mirror images that are asked for if any are."""
    attributes = ALIKE - {"flips"} if flips else ALIKE
    first, *others = (side.model_dump(include=attributes) for side in sidecars)
    for place, other in zip(places[1:], others, strict=True):
        if lines := list(differences(first, other)):
            raise UserError(
                f"{place}: this model cannot be averaged with {places[0]}:\n  "
                + "\n  ".join(lines)
                + "\nAverage models that were trained on the same shards."
            )


@dataclass(frozen=True)
class Model:
    """A reference to the best models of one or several runs, which evaluation and prediction use as one model.

    Attributes:
        runs: The runs whose best models are averaged.
        flips: The mirror images that are averaged over; None for those that the models were trained to be used with.
    """

    runs: tuple[Run, ...]
    flips: Flips | None = None

    @property
    def suffix(self) -> str:
        """The suffix of its folder of figures, such as `-top3-flips-all`; empty for one run without mirror images."""
        several = f"-top{len(self.runs)}" if len(self.runs) > 1 else ""
        return several + (f"-flips-{self.flips}" if self.flips else "")

    @property
    def used_flips(self) -> Flips:
        """The mirror images that are averaged over.

        Raises:
            UserError: As `load`.
            OSError: As `load`.
        """
        return self.flips or self.processing().sidecar.flips

    def load(self, *, device: str = "cpu") -> Predictor:
        """Opens the models, as `load_predictor` does.

        Args:
            device: The device to compute on.

        Returns:
            The models as one predictor.

        Raises:
            UserError: If a run has no model that can be used, or if the models cannot be averaged.
            OSError: If a file cannot be read; a `StorageError` for a bucket.
        """
        return load_predictor(*self._places, flips=self.flips, device=device)

    def processing(self) -> Processing:
        """Reads what is needed around the networks, as `load_processing` does.

        Raises:
            UserError: As `load`.
            OSError: As `load`.
        """
        return load_processing(*self._places, flips=self.flips)

    @property
    def _places(self) -> list[Location]:
        return [run.place / BEST for run in self.runs]
