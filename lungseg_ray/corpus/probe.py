"""Looks at the pixels of a few images and masks to find out how all of them are to be read, and says what it found.

What the user sets is never changed. What is found holds for the whole corpus: files that do not fit it are set aside.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.decode import colour_name, has_colours, packed_colours
from lungseg_ray.corpus.formats import decode_file
from lungseg_ray.corpus.phantom import is_phantom
from lungseg_ray.corpus.picture import Picture, Purpose
from lungseg_ray.corpus.plausible import Appearance, appearance, appearance_warnings, foreground
from lungseg_ray.corpus.read import binary, fetch, fits, has_own_label, read_sample, redact_paths
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import BadFileError
from lungseg_ray.storage import PATIENCE_SECONDS, REQUESTS, retry
from lungseg_ray.text import counted

MOST_LOOKED_AT = 16
"""The number of images, spread over the corpus, that are looked at."""
WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Values of white for 8, 10, 12, 14 and 16 bits."""
_NEAR = 0.15
_FEW_VALUES = 16
_MOST_LABELS = 6
"""Masks with more values than this, nearly all of them beside black and white, have lossy borders and no labels."""
_MOST_STRUCTURES = 64
"""Whole numbers up to this one stand for structures, however many there are."""
_NEARLY_ALL = 0.95
_BORDER = 255
_SAME_AREA = 0.5
_SMALL = 1024
KnownValues = Mapping[int | str, int | Literal["ignore"]]
"""Labels by the values or colours of masks."""


@dataclass
class Found:
    """What was found out.

    Attributes:
        settings: The settings of the corpus, with what was found in place of what was not set.
        records: The records, with the scale of their masks.
        recognition: What was found, for the user.
        warnings: What the user should check, as sentences.
        glances: The same of the few images that were looked at, which whoever reads all of them knows better.
    """

    settings: CorpusSettings
    records: list[Record]
    recognition: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    glances: list[str] = field(default_factory=list)


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
    _find_white(found, looks)
    _find_scale(found, looks)
    if known and not settings.mask_values and _are_known(looks, known):
        _set(found, mask_values=dict(known))
    elif any(has_own_label(source, settings) for one in looks for source in one.record.masks):
        found.settings = binary(settings)
        _find_labels(found, looks)
        _set(found, classes=settings.classes, class_names=settings.class_names)
    else:
        _find_labels(found, looks)
    _check_overlap(found, looks)
    _check_pictures(found, [one.record for one in looks])
    return found


def _look(record: Record) -> _Look:
    with redact_paths(record.image_id if record.private else ""):
        images = _pictures(record.image_uri, "image")
        masks = [_pictures(source.uri, "mask", "alpha") for source in record.masks if not source.entry]
    return _Look(
        record,
        images.get("image"),
        [found["mask"] for found in masks if "mask" in found],
        [found["alpha"] for found in masks if "alpha" in found],
    )


def _pictures(uri: str, *uses: Purpose) -> dict[Purpose, Picture]:
    """Reads a file once, and decodes it for each use for which it can be."""
    found: dict[Purpose, Picture] = {}
    try:
        data = retry(partial(fetch, uri), seconds=PATIENCE_SECONDS)
    except BadFileError:
        return found
    for use in uses:
        with suppress(BadFileError):
            found[use] = decode_file(data, name=uri, use=use)
    return found


def _set(found: Found, **settings: Any) -> None:
    found.settings = found.settings.model_copy(update=settings)


def _find_white(found: Found, looks: Iterable[_Look]) -> None:
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
    _set(found, white=choice[0] if len(choice) == 1 else choice)
    told = ", ".join(f"{top:g} in {count}" for top, count in sorted(tops.items()))
    found.recognition.append(
        f"white: {told} of {counted(len(pictures), 'file')} looked at that could be brighter; each file is scaled by "
        f"the smallest of {', '.join(f'{white:g}' for white in choice)} that it does not exceed (corpus.white)"
    )


def _find_scale(found: Found, looks: Sequence[_Look]) -> None:
    if found.settings.mask_scale != "auto":
        return
    pairs = [
        (one.image.pixels.shape[:2], mask.pixels.shape[:2], one.record.mask_scale)
        for one in looks
        if one.image and one.record.mask_scale is not None
        for mask in one.masks
    ]
    wrong = [(image, mask) for image, mask, scale in pairs if not fits(image, mask, scale or 1.0)]
    if len(wrong) <= len(pairs) / 2:
        return
    swapped = [pair for pair in wrong if pair[0] == pair[1][::-1]]
    if len(swapped) > len(wrong) / 2:
        found.warnings.append(
            f"{len(swapped)} of {len(pairs)} masks looked at have the size of their image with rows and columns "
            "exchanged: they, or the images, are transposed. Turn them before they are used."
        )
        return
    ratios = {(round(image[0] / mask[0], 2), round(image[1] / mask[1], 2)) for image, mask in wrong}
    first = wrong[0]
    scale = first[0][0] / first[1][0]
    if len(ratios) == 1 and all(fits(image, mask, scale) for image, mask in wrong):
        chosen: float | None = scale
        text = f"enlarged {scale:.4g} times" if scale > 1 else f"reduced to {scale:.4g} of their size"
    elif _one_size_for_all(wrong) or all(_same_aspect(image, mask) for image, mask in wrong):
        chosen, text = None, "stretched, each to the size of its image"
    else:
        return
    sizes = sorted({f"{mask[1]} x {mask[0]}" for _, mask in wrong})
    shown = f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} px and {len(sizes) - 1} more sizes"
    found.recognition.append(f"masks: of another size than their images ({shown}); they are {text} (corpus.mask_scale)")
    found.records = [
        record if record.mask_scale is None else replace(record, mask_scale=chosen) for record in found.records
    ]


def _one_size_for_all(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether images of several sizes have masks of a single size."""
    return len({mask for _, mask in pairs}) == 1 and len({image for image, _ in pairs}) > 1


def _same_aspect(image: tuple[int, ...], mask: tuple[int, ...]) -> bool:
    return abs(image[0] * mask[1] / (image[1] * mask[0]) - 1) < 0.03


def _find_labels(found: Found, looks: Sequence[_Look]) -> None:
    settings = found.settings
    masks = [mask for one in looks for mask in one.masks]
    if settings.mask_values or settings.mask_threshold is not None or settings.mask_channel != "colour" or not masks:
        return
    alphas = [alpha for one in looks for alpha in one.alphas]
    if len(alphas) == len(masks) and all(_is_constant(mask) for mask in masks) and not all(map(_is_constant, alphas)):
        _set(found, mask_channel="alpha")
        found.recognition.append("masks: of one colour; the shape is in their alpha channel, which is read")
        masks = alphas
    coloured = [mask for mask in masks if has_colours(mask.pixels)]
    if coloured:
        _find_colours(found, masks)
    else:
        _find_values(found, masks)


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


def _find_values(found: Found, masks: Sequence[Picture]) -> None:
    """Finds out what the values of grey masks stand for, or asks."""
    settings = found.settings
    grey = [mask.pixels if mask.pixels.ndim == 2 else mask.pixels[:, :, 0] for mask in masks]
    by_mask = [_counted(pixels) for pixels in grey]
    border: dict[int | str, int | Literal["ignore"]] = {}
    if any(_has_border(counts) for counts in by_mask):
        border = {_BORDER: "ignore"}
        by_mask = [Counter({value: count for value, count in one.items() if value != _BORDER}) for one in by_mask]
        found.recognition.append(
            f"masks: the value {_BORDER} beside those of structures is a border, as in PASCAL VOC, and is ignored "
            "(corpus.mask_values)"
        )
    counts = sum(by_mask, Counter[float]())
    values, single = sorted(counts), settings.classes <= 2
    if counts.keys() <= settings.labels.keys():
        if border:
            _set(found, mask_values={int(value): settings.labels[int(value)] for value in values} | border)
    elif single and len(values) == 2 and values[0] == 0 and float(values[1]).is_integer():
        _set(found, mask_values={0: 0, int(values[1]): 1} | border)
        found.recognition.append(
            f"masks: values 0 and {values[1]:g}, of which {values[1]:g} marks (corpus.mask_values)"
        )
    elif single and _is_smooth(counts):
        _take_threshold(found, counts, max(masks, key=lambda mask: mask.white).white)
    elif single and settings.unite is not None and values[0] == 0:
        _take_structures(found, [int(value) for value in values if value], border)
    elif len(values) <= _FEW_VALUES:
        _ask_for_labels(found, values)


def _counted(pixels: NDArray[Any]) -> Counter[float]:
    present, numbers = np.unique(np.round(pixels, 3) if pixels.dtype.kind == "f" else pixels, return_counts=True)
    return Counter(dict(zip(present.tolist(), numbers.tolist(), strict=True)))


def _has_border(counts: Counter[float]) -> bool:
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
    _set(found, mask_threshold=threshold)
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
    _set(found, mask_values={0: 0, **labels, **border})
    text = f"masks: values 0, {', '.join(map(str, structures))}"
    if unite:
        found.recognition.append(f"{text}, of which all above 0 are united (corpus.unite)")
        return
    names = [f"structure {value}" for value in structures]
    _set(found, classes=len(names) + 1, class_names=names)
    found.recognition.append(f"{text}, each a class (corpus.unite, corpus.class_names)")


def _ask_for_labels(found: Found, values: Sequence[float]) -> None:
    settings = found.settings
    unknown = [value for value in values if value not in settings.labels]
    labels = max(settings.classes - 1, 1)
    proposal = {f"{value:g}": min(number, labels) for number, value in enumerate(values)}
    if all(label == settings.labels.get(int(value)) for value, label in zip(values, proposal.values(), strict=True)):
        return
    text = (
        f"The masks have the values {', '.join(f'{value:g}' for value in values)}, of which "
        f"{', '.join(f'{value:g}' for value in unknown)} have no label. If they stand for the labels in this "
        f"order, say --corpus.mask_values '{json.dumps(proposal)}'"
    )
    united = settings.classes <= 2 and values[0] == 0
    found.warnings.append(f"{text}{', or --corpus.unite true if they are one' if united else ''}.")


def _find_colours(found: Found, masks: Sequence[Picture]) -> None:
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
    if grey_like:
        grey = [Picture(_mean(mask.pixels), mask.bits, mask.white) for mask in masks]
        return _find_values(found, grey)
    colours = [colour for colour, _ in counts.most_common() if colour != 0]
    names = {colour: colour_name(colour) for colour in colours[:_FEW_VALUES]}
    if len(colours) == 1 and settings.classes <= 2:
        _set(found, mask_values={"#000000": 0, names[colours[0]]: 1})
        found.recognition.append(f"masks: one colour, {names[colours[0]]}, on black (corpus.mask_values)")
        return None
    if settings.unite is not None and settings.classes <= 2 and 0 in counts and len(colours) <= _FEW_VALUES:
        marks = {names[colour]: 1 if settings.unite else at for at, colour in enumerate(sorted(names), start=1)}
        _set(found, mask_values={"#000000": 0} | marks)
        if not settings.unite:
            _set(found, classes=len(marks) + 1, class_names=list(marks))
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


def _mean(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels if pixels.ndim == 2 else np.round(pixels.mean(axis=2)).astype(pixels.dtype)


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
    found.glances += appearance_warnings(looks)
    empty = sum(one.empty for one in looks)
    if empty > len(looks) / 2 and found.settings.empty_masks != "keep":
        found.warnings.append(
            f"{empty} of {len(looks)} masks mark nothing. They are set aside; say --corpus.empty_masks keep if images "
            "without the structure belong to the corpus."
        )
