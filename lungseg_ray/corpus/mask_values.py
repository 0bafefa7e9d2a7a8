"""Finds out what the values and the colours of masks stand for, from the masks of a few images, or asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.corpus.decode import colour_name, packed_colours
from lungseg_ray.corpus.found import Found
from lungseg_ray.corpus.picture import Picture
from lungseg_ray.text import counted

_NEAR = 0.15
_FEW_VALUES = 16
_MOST_LABELS = 6
"""Masks with more values than this, nearly all of them beside black and white, have lossy borders and no labels."""
_MOST_STRUCTURES = 64
"""Whole numbers up to this one stand for structures, however many there are."""
_NEARLY_ALL = 0.95
_OFF_SHADE, _ALL_SHADES = 40.0, 0.99
"""The distance up to which a colour is a shade of another, and the share of pixels that must be shades."""
_BORDER = 255
_THIN_PIXELS, _THIN_SHARE = 3.0, 0.01
"""Half of the width of a border, at most: pixels, or a share of the longer side."""


def find_values(found: Found, masks: Sequence[Picture]) -> None:
    """Finds out what the values of grey masks stand for, or asks the user by a warning.

    Args:
        found: What was found out so far, which is added to.
        masks: The masks of a few images, as they are stored.
    """
    settings = found.settings
    grey = [mask.pixels if mask.pixels.ndim == 2 else mask.pixels[:, :, 0] for mask in masks]
    by_mask = [_counted(pixels) for pixels in grey]
    border: dict[int | str, int | Literal["ignore"]] = {}
    with_both = [pixels for pixels, counts in zip(grey, by_mask, strict=True) if _has_both(counts)]
    thin = sum(_is_thin(pixels) for pixels in with_both)
    if with_both and thin < len(with_both) / 2:
        found.warnings.append(
            f"{counted(len(with_both), 'mask')} of {len(masks)} looked at have the value {_BORDER} and small values in "
            "one file. Say what each of them means with corpus.mask_values."
        )
    elif with_both:
        border = {_BORDER: "ignore"}
        by_mask = [Counter({value: count for value, count in one.items() if value != _BORDER}) for one in by_mask]
        found.recognition.append(
            f"masks: the value {_BORDER} beside those of structures is a border, as in PASCAL VOC, and is ignored "
            "(corpus.mask_values)"
        )
    # A mask of one value, such as an empty one, says nothing of what others mean.
    telling = [one for one in by_mask if len(one) > 1 or not one.keys() <= settings.labels.keys()]
    odd = [one for one in telling if not one.keys() <= settings.labels.keys()]
    if odd and len(odd) < len(telling) / 2 and not border:
        found.warnings.append(
            f"{len(odd)} of {counted(len(telling), 'mask')} looked at have other values than the rest, and are set "
            "aside. Are they masks?"
        )
        return
    counts = sum(odd or by_mask, Counter[float]())
    values, single = sorted(counts), settings.classes <= 2
    if values and values[0] < 0:
        found.warnings.append(
            "The masks have values below 0, as the logits of a network. Expected labels or probabilities from 0 to 1."
        )
        return
    if counts.keys() <= settings.labels.keys():
        if border:
            found.set(mask_values={int(value): settings.labels[int(value)] for value in values} | border)
    elif single and len(values) == 2 and values[0] == 0 and float(values[1]).is_integer():
        found.set(mask_values={0: 0, int(values[1]): 1} | border)
        found.recognition.append(
            f"masks: values 0 and {values[1]:g}, of which {values[1]:g} marks (corpus.mask_values)"
        )
    elif single and _is_smooth(counts):
        _take_threshold(found, counts, max(masks, key=lambda mask: mask.white).white)
    elif single and settings.unite is not None and values[0] == 0:
        _take_structures(found, [int(value) for value in values if value], border)
    elif len(values) <= _FEW_VALUES:
        _ask_for_labels(found, values, border)


def _counted(pixels: NDArray[Any]) -> Counter[float]:
    present, numbers = np.unique(np.round(pixels, 3) if pixels.dtype.kind == "f" else pixels, return_counts=True)
    return Counter(dict(zip(present.tolist(), numbers.tolist(), strict=True)))


def _is_thin(pixels: NDArray[Any]) -> bool:
    """Whether the value 255 marks lines, and not areas."""
    distance = cv2.distanceTransform((pixels == _BORDER).astype(np.uint8), cv2.DIST_L2, 3)
    return float(distance.max()) <= max(_THIN_PIXELS, _THIN_SHARE * max(pixels.shape))


def _has_both(counts: Counter[float]) -> bool:
    """Whether a mask has the value 255 beside the small numbers of structures."""
    others = counts.keys() - {0, _BORDER}
    return _BORDER in counts and bool(others) and all(value <= _MOST_STRUCTURES for value in others)


def _share_of_two(counts: Counter[float]) -> float:
    """Returns the share of pixels that are nearly black, or nearly of the largest value."""
    top = max(counts)
    near = sum(count for value, count in counts.items() if value <= _NEAR * top or value >= (1 - _NEAR) * top)
    return near / counts.total()


def _is_smooth(counts: Counter[float]) -> bool:
    """Whether the values are those between black and white, and not numbers of structures."""
    if min(counts) > _NEAR * max(counts):
        return False
    if not all(float(value).is_integer() for value in counts):
        return True
    # JPEG leaves a few values beside black and white, and smoothing or a network leaves many between them.
    beside = len(counts) > _MOST_LABELS and _share_of_two(counts) > _NEARLY_ALL
    # Values of many structures are small whole numbers.
    return (beside or len(counts) > _FEW_VALUES) and max(counts) > _MOST_STRUCTURES


def _take_threshold(found: Found, counts: Counter[float], white: float) -> None:
    # Ringing exceeds the value that marks, which is the one in the middle of those above half of the largest.
    upper = sorted((value, count) for value, count in counts.items() if value > max(counts) / 2)
    half = np.cumsum([count for _, count in upper]) >= sum(count for _, count in upper) / 2
    marks, share = upper[int(np.argmax(half))][0], _share_of_two(counts)
    threshold = 0.5 if marks > 0.8 * white else round(0.5 * marks / white, 4)
    found.set(mask_threshold=threshold)
    kind = "smooth or lossy borders" if share > 0.85 else "values between black and white, as of probabilities"
    text = f"masks: {kind}; pixels from {threshold:g} of white on are marked (corpus.mask_threshold)"
    found.recognition.append(text)
    if share <= 0.85:
        found.warnings.append(
            f"{1 - share:.0%} of the masks' pixels have values between black and white. The threshold "
            f"{threshold:g} is a guess; set --corpus.mask_threshold to that which is meant."
        )


def _take_structures(
    found: Found, structures: Sequence[int], border: Mapping[int | str, int | Literal["ignore"]]
) -> None:
    unite = found.settings.unite
    labels = {value: 1 if unite else number for number, value in enumerate(structures, start=1)}
    found.set(mask_values={0: 0, **labels, **border})
    text = f"masks: values 0, {', '.join(map(str, structures))}"
    if unite:
        found.recognition.append(f"{text}, of which all above 0 are united (corpus.unite)")
        return
    names = [f"structure {value}" for value in structures]
    found.set(classes=len(names) + 1, class_names=names)
    found.recognition.append(f"{text}, each a class (corpus.unite, corpus.class_names)")


def _ask_for_labels(found: Found, values: Sequence[float], border: Mapping[int | str, int | Literal["ignore"]]) -> None:
    settings = found.settings
    unknown = [value for value in values if value not in settings.labels]
    labels = max(settings.classes - 1, 1)
    proposal: dict[str, int | str] = {f"{value:g}": min(number, labels) for number, value in enumerate(values)}
    if all(label == settings.labels.get(int(value)) for value, label in zip(values, proposal.values(), strict=True)):
        return
    proposal |= {str(value): label for value, label in border.items()}
    text = (
        f"The masks have the values {', '.join(f'{value:g}' for value in values)}; without a label: "
        f"{', '.join(f'{value:g}' for value in unknown)}. If the values stand for the labels in this "
        f"order, say --corpus.mask_values '{json.dumps(proposal)}'"
    )
    united = settings.classes <= 2 and values[0] == 0
    found.warnings.append(f"{text}{', or --corpus.unite true if they are one' if united else ''}.")


def find_colours(found: Found, masks: Sequence[Picture]) -> None:
    """Finds out what the colours of masks stand for, or asks the user by a warning.

    Args:
        found: What was found out so far, which is added to.
        masks: The masks of a few images, as they are stored, some of them with colours.
    """
    settings = found.settings
    counts: Counter[int] = Counter()
    grey_like = True
    for mask in masks:
        packed = packed_colours(mask.pixels)
        values, numbers = np.unique(packed, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        if mask.pixels.ndim == 3:
            spread = mask.pixels.max(axis=2).astype(int) - mask.pixels.min(axis=2)
            grey_like = grey_like and float((spread > 40).mean()) < 0.01
    colours = [colour for colour, _ in counts.most_common() if colour != 0]
    shades = len(colours) > _FEW_VALUES and settings.classes <= 2 and _are_shades(counts, colours[0])
    if grey_like or shades:
        # A threshold is compared with the mean of the channels (`decode_mask`).
        grey = [Picture(_mean(mask.pixels), mask.bits, mask.white) for mask in masks]
        return find_values(found, grey)
    names = {colour: colour_name(colour) for colour in colours[:_FEW_VALUES]}
    if len(colours) == 1 and settings.classes <= 2:
        found.set(mask_values={"#000000": 0, names[colours[0]]: 1})
        found.recognition.append(f"masks: one colour, {names[colours[0]]}, on black (corpus.mask_values)")
        return None
    if settings.unite is not None and settings.classes <= 2 and 0 in counts and len(colours) <= _FEW_VALUES:
        marks = {names[colour]: 1 if settings.unite else at for at, colour in enumerate(sorted(names), start=1)}
        found.set(mask_values={"#000000": 0} | marks)
        if not settings.unite:
            found.set(classes=len(marks) + 1, class_names=list(marks))
        how = "which are united" if settings.unite else "each a class"
        found.recognition.append(f"masks: colours {', '.join(marks)} on black, {how} (corpus.unite)")
        return None
    if len(colours) <= _FEW_VALUES:
        labels = max(settings.classes - 1, 1)
        proposal = {"#000000": 0} | {names[colour]: min(at, labels) for at, colour in enumerate(colours, start=1)}
        found.warnings.append(
            f"The masks have {len(colours)} colours ({', '.join(names[colour] for colour in colours)}). Say which "
            f"label each one is, such as --corpus.mask_values '{json.dumps(proposal)}'."
        )
    else:
        found.warnings.append(
            f"The masks have {len(colours)} colours, as photographs or overlays do. Expected masks of few colours; "
            "save them without compression losses, or name their folder with --corpus.masks."
        )
    return None


def _are_shades(counts: Counter[int], colour: int) -> bool:
    """Whether nearly all pixels have shades of a colour down to black, as smooth or lossy borders on black have."""
    packed, numbers = (np.array(list(part)) for part in (counts.keys(), counts.values()))
    channels = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).astype(float)
    direction = np.array([colour >> 16, colour >> 8 & 255, colour & 255], float)
    direction /= np.linalg.norm(direction)
    distance = np.linalg.norm(channels - np.outer(channels @ direction, direction), axis=1)
    far = float(numbers[distance > _OFF_SHADE].sum()) / float(numbers.sum())
    return counts[0] > 0 and far < 1 - _ALL_SHADES


def _mean(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels if pixels.ndim == 2 else np.round(pixels.mean(axis=2)).astype(pixels.dtype)
