"""The augmentation presets: they turn an image and mask of any size into an input of the network."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from lungseg_ray.errors import UserError
from lungseg_ray.imaging import Pixels, resize_labels
from lungseg_ray.names import PRESETS, Fit

# albumentations imports PyTorch for its converter to tensors, which takes a second in every data task. It does without
# if that module cannot be imported, as is the case here for the moment.
sys.modules.setdefault("albumentations.pytorch", None)  # type: ignore[arg-type]
import albumentations as A  # noqa: E402

from lungseg_ray.feed.transforms import BrightnessRamp, BurntInText, Framing, Opacities, PadToSquare  # noqa: E402

if sys.modules["albumentations.pytorch"] is None:
    del sys.modules["albumentations.pytorch"]

_Pairs = Sequence[tuple[int, int]]


class Augment:
    """An augmentation preset with a fixed output size; its random choices depend on the seed alone.

    Args:
        transforms: The Albumentations transforms, in the order in which they are applied.
        size: Height and width of the output, pixels.
    """

    def __init__(self, transforms: Sequence[Any], *, size: int) -> None:
        self.size = size
        self._compose = A.Compose(list(transforms), p=1.0)

    def __call__(self, image: Pixels, mask: Pixels, *, seed: int | Sequence[int]) -> tuple[Pixels, Pixels]:
        """Augments an image together with its mask.

        Args:
            image: (H, W, C) uint8.
            mask: (H, W) uint8 label map.
            seed: Seed of the random choices. Equal seeds give equal results, in any process and after any earlier
                calls.

        Returns:
            The image (size, size, C) and the mask (size, size), uint8 and contiguous; they may share memory with the
            input. The mask holds values of the given mask, of which those of sides change places in a mirror image,
            and 0 where a constant border was added.
        """
        words = [part % 2**64 for part in ([seed] if isinstance(seed, int) else seed)]
        generator = np.random.default_rng(words)
        # All transforms share one generator. `set_random_seed` would give each transform its own generator with the
        # same seed, so that the choice of a flip would also determine the choice of holes.
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        drawn = self._compose(image=image, mask=mask)
        pixels = np.ascontiguousarray(drawn["image"]).reshape(self.size, self.size, image.shape[2])
        return pixels, np.ascontiguousarray(drawn["mask"])


class _Resize(A.Resize):
    def apply_to_mask(self, mask: Pixels, **_: Any) -> Pixels:
        return resize_labels(mask, self.height, self.width, mode="bilinear")


class _Reflection(A.DualTransform):
    """Exchanges the labels that name a side, beside the reflection of the class that it is mixed with.

    A rotation exchanges none: a patient who lies on the head has the left lung where the right one was.
    """

    def __init__(self, *, p: float, mirrored: _Pairs) -> None:
        super().__init__(p=p)
        self._table = np.arange(256, dtype=np.uint8)
        for one, other in mirrored:
            self._table[one], self._table[other] = other, one
        self._exchanges = bool(mirrored)

    def apply_to_mask(self, mask: Pixels, **params: Any) -> Pixels:
        reflected = super().apply_to_mask(mask, **params)
        return self._table[reflected] if self._exchanges else reflected


class _HorizontalFlip(_Reflection, A.HorizontalFlip):
    pass


class _VerticalFlip(_Reflection, A.VerticalFlip):
    pass


class _Transpose(_Reflection, A.Transpose):
    pass


class _RandomResizedCrop(A.RandomResizedCrop):
    def apply_to_mask(self, mask: Pixels, *, crop_coords: tuple[int, int, int, int], **_: Any) -> Pixels:
        left, top, right, bottom = crop_coords
        return resize_labels(mask[top:bottom, left:right], *self.size, mode="bilinear")


def _resize(size: int) -> Any:
    return _Resize(
        height=size,
        width=size,
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
        area_for_downscale=None,
        p=1.0,
    )


def _valid(size: int, mirrored: _Pairs) -> list[Any]:
    return [_resize(size)]


def _light(size: int, mirrored: _Pairs) -> list[Any]:
    return [
        _RandomResizedCrop(
            size=(size, size),
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST_EXACT,
            area_for_downscale=None,
            p=1.0,
        ),
        A.OneOf(
            [
                _Transpose(p=1.0, mirrored=mirrored),
                _VerticalFlip(p=1.0, mirrored=mirrored),
                _HorizontalFlip(p=1.0, mirrored=mirrored),
                A.RandomRotate90(p=1.0),
                A.NoOp(p=1.0),
            ],
            p=1.0,
        ),
    ]


def _holes() -> Any:
    return A.OneOf(
        [
            A.CoarseDropout(
                num_holes_range=(16, 16),
                hole_height_range=(16, 16),
                hole_width_range=(16, 16),
                fill=0,
                fill_mask=None,
                p=1.0,
            ),
            A.NoOp(p=1.0),
        ],
        p=1.0,
    )


def _affine(
    *, scale: tuple[float, float], shift: float, degrees: float, shear: float, border_mode: int, p: float
) -> Any:
    return A.Affine(
        scale=scale,
        keep_ratio=True,
        balanced_scale=False,
        translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
        rotate=(-degrees, degrees),
        rotate_method="largest_box",
        shear={"x": (-shear, shear), "y": (-shear, shear)},
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        fit_output=False,
        border_mode=border_mode,
        fill=0,
        fill_mask=0,
        p=p,
    )


def _medium(size: int, mirrored: _Pairs) -> list[Any]:
    return [*_light(size, mirrored), _holes()]


def _heavy(size: int, mirrored: _Pairs) -> list[Any]:
    affine = _affine(scale=(0.9, 1.1), shift=0.0625, degrees=45, shear=0.0, border_mode=cv2.BORDER_REFLECT_101, p=0.75)
    return [*_light(size, mirrored), affine, _holes()]


def _chest(size: int, mirrored: _Pairs) -> list[Any]:
    return [
        _resize(size),
        _HorizontalFlip(p=0.5, mirrored=mirrored),
        A.RandomBrightnessContrast(
            brightness_limit=(-0.2, 0.2),
            contrast_limit=(-0.25, 0.25),
            brightness_by_max=True,
            ensure_safe_range=False,
            p=0.5,
        ),
        A.RandomGamma(gamma_limit=(70, 140), p=0.3),
        # A black border looks like the edge of a collimator. A mirrored border would show a second shoulder.
        _affine(scale=(0.85, 1.2), shift=0.06, degrees=10, shear=4.0, border_mode=cv2.BORDER_CONSTANT, p=0.9),
        A.OneOf(
            [
                A.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.4, 1.2), p=1.0),
                A.GaussNoise(
                    std_range=(0.01, 0.05), mean_range=(0.0, 0.0), per_channel=False, noise_scale_factor=0.5, p=1.0
                ),
            ],
            p=0.25,
        ),
    ]


def _chest_robust(size: int, mirrored: _Pairs) -> list[Any]:
    inverted_gamma = A.Sequential(
        [A.InvertImg(p=1.0), A.RandomGamma(gamma_limit=(60, 170), p=1.0), A.InvertImg(p=1.0)], p=0.08
    )
    return [
        Framing(size=size, zoom=(0.65, 1.25), aspect=(0.72, 1.38), degrees=12, shear=4.0, shift=0.08),
        _HorizontalFlip(p=0.5, mirrored=mirrored),
        Opacities(count=(1, 4), radius=(0.04, 0.18), strength=(0.2, 0.9), p=0.1),
        A.CoarseDropout(
            num_holes_range=(1, 3),
            hole_height_range=(0.04, 0.15),
            hole_width_range=(0.04, 0.15),
            fill="random_uniform",
            fill_mask=None,
            p=0.08,
        ),
        BurntInText(count=(1, 3), p=0.12),
        A.RandomBrightnessContrast(
            brightness_limit=(-0.2, 0.2),
            contrast_limit=(-0.3, 0.3),
            brightness_by_max=True,
            ensure_safe_range=False,
            p=0.5,
        ),
        A.RandomGamma(gamma_limit=(60, 170), p=0.3),
        inverted_gamma,
        BrightnessRamp(gamma=(0.6, 1.7), p=0.08),
        A.InvertImg(p=0.05),
        A.Downscale(
            scale_range=(0.3, 0.8),
            interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
            p=0.06,
        ),
        A.OneOf(
            [
                A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.4, 1.8), p=1.0),
                A.GaussNoise(
                    std_range=(0.01, 0.08), mean_range=(0.0, 0.0), per_channel=False, noise_scale_factor=1.0, p=1.0
                ),
                A.CLAHE(clip_limit=(1.0, 3.0), tile_grid_size=(8, 8), p=1.0),
            ],
            p=0.3,
        ),
    ]


_BUILDERS: dict[str, Callable[[int, _Pairs], list[Any]]] = {
    "valid": _valid,
    "light": _light,
    "medium": _medium,
    "heavy": _heavy,
    "chest": _chest,
    "chest_robust": _chest_robust,
}


def build_augmentation(
    preset: str, *, size: int, fit: Fit = "stretch", mirrored: Sequence[tuple[int, int]] = ()
) -> Augment:
    """Builds an augmentation preset from its name.

    - valid, light, medium, heavy: the presets of the published recipe. `valid` only resizes the image.
    - chest: flips the image horizontally, and changes its geometry, exposure and sharpness only as far as patients and
      detectors vary.
    - chest_robust: as `chest`, but as far as hospitals vary: other fields of view and aspect ratios, strong changes of
      the exposure, opacities in the lungs, letters, covered parts.

    Args:
        preset: The name of the preset, one of `PRESETS`.
        size: Height and width of the output, pixels.
        fit: How an image that is not square becomes so: "stretch", as in the recipe, or "pad", by black borders, which
            keeps its aspect ratio.
        mirrored: Pairs of labels that change places where an image is mirrored.

    Returns:
        The preset, as a function of image, mask and seed.

    Raises:
        UserError: If there is no preset of this name.
    """
    if preset not in _BUILDERS:
        raise UserError(f"Unknown augmentation preset {preset!r} (feed.preset): expected one of {', '.join(PRESETS)}.")
    padding = [PadToSquare(p=1.0)] if fit == "pad" else []
    return Augment([*padding, *_BUILDERS[preset](size, mirrored)], size=size)
