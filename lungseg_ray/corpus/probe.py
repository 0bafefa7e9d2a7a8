"""Looks at the pixels of a few images and masks to find out how all of them are to be read, and says what it found.

What the user sets is never changed. What is found holds for the whole corpus: files that do not fit it are set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.decode import colour_name, has_colours, packed_colours
from lungseg_ray.corpus.formats import decode_file, oriented
from lungseg_ray.corpus.found import Found
from lungseg_ray.corpus.mask_values import find_colours, find_values
from lungseg_ray.corpus.phantom import is_phantom
from lungseg_ray.corpus.picture import Picture, Purpose
from lungseg_ray.corpus.plausible import Appearance, AppearanceTally, appearance, foreground
from lungseg_ray.corpus.read import (
    binary,
    fetch,
    fits,
    fits_any,
    has_own_label,
    read_sample,
    redact_paths,
    same_proportions,
)
from lungseg_ray.corpus.record import ANY_SCALE, Record
from lungseg_ray.errors import BadFileError
from lungseg_ray.storage import PATIENCE_SECONDS, REQUESTS, retry
from lungseg_ray.text import counted

MOST_LOOKED_AT = 16
"""The number of images, spread over the corpus, that are looked at."""
WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Values of white for 8, 10, 12, 14 and 16 bits."""
_SAME_AREA = 0.5
_THUMB, _ALIKE = 64, 0.9
"""Pixels of the sides of pictures that are compared, and the correlation from which on they are alike."""
_BETWEEN = 0.3
"""The share of pixels between black and white that a picture has, and a mask has not."""
_SMALL = 1024
_MOST_SCALES = 3
"""The number of different scales of masks up to which each is named. Masks of more must have the proportions of
their images."""
KnownValues = Mapping[int | str, int | Literal["ignore"]]
"""Labels by the values or colours of masks."""


@dataclass(frozen=True)
class _Look:
    """The files of one record as they are stored; None for what cannot be read."""

    record: Record
    image: Picture | None
    masks: list[Picture]
    alphas: list[Picture]


def look(records: Sequence[Record], settings: CorpusSettings, known: KnownValues | None = None) -> Found:
    """Finds out how images and masks are to be read.

    Args:
        records: The images with masks.
        settings: The settings of the corpus.
        known: Labels of values or colours that a file of the corpus defines, for `mask_values`.

    Returns:
        What was found. Files that cannot be read are left to those who read all of them.
    """
    found = Found(settings, list(records))
    some = [record for record in records if not is_phantom(record.image_uri)]
    some = some[:: max(-(-len(some) // MOST_LOOKED_AT), 1)]
    if not some:
        return found
    with ThreadPoolExecutor(REQUESTS) as pool:
        looks = list(pool.map(_look, some))
    if not any(one.image for one in looks) and (why := _why_unread(looks[0].record)):
        found.warnings.append(f"None of {counted(len(looks), 'image')} that were looked at can be opened: {why}.")
    _find_white(found, looks)
    _find_scale(found, looks)
    if any(
        _is_nifti(source.uri) and not _is_nifti(one.record.image_uri) for one in looks for source in one.record.masks
    ):
        found.recognition.append(
            "masks: NIfTI files, whose first axis is taken for the columns of the image, as annotation tools write it; "
            "the picture of the pairs shows whether they lie as their images do"
        )
    if _are_copies(looks):
        found.warnings.append(
            "The masks look like their images, as if both folders held X-rays. Name the folder of the masks, or a "
            "pattern of its files: --corpus.masks"
        )
        return found
    if known and not settings.mask_values and _are_known(looks, known):
        found.set(mask_values=dict(known))
    elif any(has_own_label(source, settings) for one in looks for source in one.record.masks):
        found.settings = binary(settings)
        _find_labels(found, looks)
        found.set(classes=settings.classes, class_names=settings.class_names)
    else:
        _find_labels(found, looks)
    _check_overlap(found, looks)
    _check_pictures(found, [one.record for one in looks])
    return found


def _look(record: Record) -> _Look:
    with redact_paths(record.image_id if record.private else ""):
        images = _pictures(record.image_uri, "image")
        axes = images["image"].axes if "image" in images else ""
        masks = [_pictures(source.uri, "mask", "alpha", axes=axes) for source in record.masks if not source.entry]
    return _Look(
        record,
        images.get("image"),
        [found["mask"] for found in masks if "mask" in found],
        [found["alpha"] for found in masks if "alpha" in found],
    )


def _is_nifti(uri: str) -> bool:
    return uri.lower().endswith((".nii", ".nii.gz"))


def _why_unread(record: Record) -> str:
    """Returns why the file of an image cannot be read, with its path; empty if it can, whatever it holds."""
    try:
        with redact_paths(record.image_id if record.private else ""):
            fetch(record.image_uri)
    except BadFileError as error:
        return f"{record.shown}: {error.detail}"
    return ""


def _pictures(uri: str, *uses: Purpose, axes: str = "") -> dict[Purpose, Picture]:
    """Reads a file once, decodes it for each use for which it can be, and turns it to the given axes."""
    found: dict[Purpose, Picture] = {}
    try:
        data = retry(partial(fetch, uri), seconds=PATIENCE_SECONDS)
    except BadFileError:
        return found
    for use in uses:
        with suppress(BadFileError):
            found[use] = oriented(decode_file(data, name=uri, use=use), axes)
    return found


def _find_white(found: Found, looks: Sequence[_Look]) -> None:
    own = [one.image for one in looks if one.image and one.image.settled and one.image.pixels.dtype != np.uint8]
    if found.settings.white is not None and own:
        found.warnings.append(
            f"corpus.white is not used for {len(own)} of {counted(len(looks), 'image')} looked at: DICOM files specify "
            "which value is white themselves."
        )
    pictures = [
        one.image for one in looks if one.image and not one.image.settled and one.image.pixels.dtype != np.uint8
    ]
    if found.settings.white is not None or not pictures:
        return
    tops: Counter[float] = Counter()
    for picture in pictures:
        highest, is_float = float(picture.pixels.max()), picture.pixels.dtype.kind == "f"
        if float(picture.pixels.min()) < 0 or highest <= 0:
            # Nothing says where black is, and the file is set aside; or nothing says where white is.
            continue
        tops[1.0 if is_float and highest <= 1 else next((white for white in WHITES if highest <= white), 65535.0)] += 1
    if tops[1.0] + tops[65535.0] > tops.total() / 2 or not tops:
        # A few dark pictures among those that use the whole range say nothing of white.
        return
    # A file that is brighter than those looked at has the next depth.
    lowest = min(top for top in tops if top > 1)
    choice = sorted({*tops, *(white for white in WHITES if white >= lowest)})
    found.set(white=choice[0] if len(choice) == 1 else choice)
    told = ", ".join(f"{top:g} in {count}" for top, count in sorted(tops.items()))
    found.recognition.append(
        f"white: {told} of {counted(len(pictures), 'file')} looked at that could be brighter; each file is scaled by "
        f"the smallest of {', '.join(f'{white:g}' for white in choice)} that it does not exceed (corpus.white)"
    )


def _find_scale(found: Found, looks: Sequence[_Look]) -> None:
    if found.settings.mask_scale != "auto":
        return
    pairs = [
        (one.image.pixels.shape[:2], mask.pixels.shape[:2], one.record.mask_scales)
        for one in looks
        if one.image and one.record.mask_scales
        for mask in one.masks
    ]
    wrong = [(image, mask) for image, mask, scales in pairs if not fits_any(image, mask, scales)]
    most_are_wrong = len(wrong) > len(pairs) / 2
    swapped = [pair for pair in wrong if pair[0] == pair[1][::-1]]
    if most_are_wrong and len(swapped) > len(wrong) / 2:
        found.warnings.append(
            f"{len(swapped)} of {len(pairs)} masks looked at have the size of their image with rows and columns "
            "exchanged: they, or the images, are transposed. Turn them before they are used."
        )
        return
    counts = _count_scales(wrong)
    if most_are_wrong and len(counts) <= _MOST_SCALES and counts.total() == len(wrong):
        chosen = tuple(counts)
    elif most_are_wrong and all(same_proportions(image, mask) for image, mask in wrong):
        chosen = ANY_SCALE
    elif most_are_wrong and _one_size_for_all(wrong):
        chosen = ()
    elif not (chosen := tuple(scale for scale, count in counts.most_common(_MOST_SCALES) if count > 1)):
        return
    stretched = chosen in ((), ANY_SCALE)
    taken = [(image, mask) for image, mask in wrong if stretched or fits_any(image, mask, chosen)]
    sizes = sorted({f"{mask[1]} x {mask[0]}" for _, mask in taken})
    shown = f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} px and {len(sizes) - 1} more sizes"
    which = "of another size" if len(taken) == len(pairs) else f"{len(taken)} of {len(pairs)} looked at of another size"
    how = [
        f"enlarged {scale:.4g} times" if scale > 1 else f"reduced to {scale:.4g} of their size"
        for scale in ([] if stretched else chosen)
    ]
    text = " or ".join(how) or "stretched, each to the size of its image"
    found.recognition.append(f"masks: {which} than their images ({shown}); they are {text} (corpus.mask_scale)")
    if not stretched and len(wrong) < len(pairs):
        chosen = tuple(sorted({*chosen, *(scale for *_, scales in pairs for scale in scales)}))
    found.records = [replace(record, mask_scales=chosen) if record.mask_scales else record for record in found.records]


def _count_scales(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Counter[float]:
    """Counts the scales of images and masks of the same proportions; whole numbers stand for those close to them."""
    counts: Counter[float] = Counter()
    left = [(image, mask) for image, mask in pairs if fits(image, mask, image[0] / mask[0])]
    while left:
        own = [image[0] / mask[0] for image, mask in left]
        known = {scale: sum(fits(*pair, scale) for pair in left) for scale in (*own, *map(round, own)) if scale}
        best = max(known, key=lambda scale: (known[scale], scale == round(scale)))
        counts[float(best)] = known[best]
        left = [pair for pair in left if not fits(*pair, best)]
    return counts


def _one_size_for_all(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether images of several sizes have masks of a single size."""
    return len({mask for _, mask in pairs}) == 1 and len({image for image, _ in pairs}) > 1


def _find_labels(found: Found, looks: Sequence[_Look]) -> None:
    settings = found.settings
    masks = [mask for one in looks for mask in one.masks]
    if settings.mask_values or settings.mask_threshold is not None or settings.mask_channel != "colour" or not masks:
        return
    alphas = [alpha for one in looks for alpha in one.alphas]
    if len(alphas) == len(masks) and all(_is_constant(mask) for mask in masks) and not all(map(_is_constant, alphas)):
        found.set(mask_channel="alpha")
        found.recognition.append("masks: of one colour; the shape is in their alpha channel, which is read")
        masks = alphas
    coloured = [mask for mask in masks if has_colours(mask.pixels)]
    if coloured:
        find_colours(found, masks)
    else:
        find_values(found, masks)


def _are_known(looks: Sequence[_Look], known: KnownValues) -> bool:
    """Whether a file of the corpus names all values, or all colours, of the masks that were looked at."""
    masks = [mask.pixels for one in looks for mask in one.masks if mask.pixels.dtype.kind == "u"]
    if any(isinstance(value, str) for value in known):
        present = {colour_name(int(one)) for pixels in masks for one in np.unique(packed_colours(pixels))}
        return bool(present) and present <= known.keys()
    values = {int(one) for pixels in masks if not has_colours(pixels) for one in np.unique(pixels)}
    return bool(values) and values <= known.keys()


def _is_constant(picture: Picture) -> bool:
    flat = picture.pixels.reshape(-1, *picture.pixels.shape[2:])
    return bool((flat == flat[:1]).all())


def _are_copies(looks: Sequence[_Look]) -> bool:
    """Whether most masks are pictures like their images."""
    pairs = [(one.image.pixels, one.masks[0].pixels) for one in looks if one.image and one.masks]
    return sum(_are_alike(image, mask) for image, mask in pairs) > len(pairs) / 2


def _are_alike(image: NDArray[Any], mask: NDArray[Any]) -> bool:
    small = [
        cv2.resize(
            np.float32(pixels).reshape(*pixels.shape[:2], -1).mean(axis=2),
            (_THUMB, _THUMB),
            interpolation=cv2.INTER_AREA,
        )
        for pixels in (image, mask)
    ]
    top = float(mask.max())
    between = ((mask > 0.15 * top) & (mask < 0.85 * top)).mean()
    if between < _BETWEEN or min(pixels.std() for pixels in small) == 0:
        return False
    return float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1]) > _ALIKE


def _check_overlap(found: Found, looks: Sequence[_Look]) -> None:
    """Warns of several masks of an image that mark the same area, as those of several annotators do."""
    several = [one for one in looks if len(one.masks) > 1]
    alike = sum(_overlap(one.masks[0].pixels, one.masks[1].pixels) > _SAME_AREA for one in several)
    if alike > len(several) / 2:
        found.warnings.append(
            f"Of {len(several)} images looked at that have several masks, {alike} have two that mark the same area, as "
            "those of several annotators do. They are united; if one of them is meant, name it with --corpus.masks."
        )


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Returns the intersection over the union of what two masks mark; 0 if they differ in size."""
    if one.shape[:2] != other.shape[:2]:
        return 0.0
    first, second = (pixels.reshape(*pixels.shape[:2], -1).max(axis=2) > 0 for pixels in (one, other))
    return float((first & second).sum() / max((first | second).sum(), 1))


def _check_pictures(found: Found, records: Sequence[Record]) -> None:
    """Warns of pictures and masks that are most probably not what is meant."""
    scaled = {record.image_id: record for record in found.records}
    settings = found.settings.model_copy(update={"empty_masks": "keep"})

    def look_at(record: Record) -> Appearance | None:
        try:
            read = partial(read_sample, scaled[record.image_id], settings, longer_side=_SMALL)
            sample = retry(read, seconds=PATIENCE_SECONDS)
            return appearance(record.image_id, sample, foreground(sample))
        except BadFileError:
            return None

    with ThreadPoolExecutor(REQUESTS) as pool:
        looks = [one for one in pool.map(look_at, records) if one]
    tally = AppearanceTally()
    for one in looks:
        tally.add(one)
    found.glances += tally.warnings()
    empty = sum(one.empty for one in looks)
    if empty > len(looks) / 2 and found.settings.empty_masks != "keep":
        found.warnings.append(
            f"{empty} of {len(looks)} masks mark nothing. They are set aside; say --corpus.empty_masks keep if images "
            "without the structure belong to the corpus."
        )
