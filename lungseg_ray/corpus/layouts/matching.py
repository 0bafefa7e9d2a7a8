"""Matches masks and images by their names, and finds out in what their names differ.

A mask belongs to an image if their names are equal once the folders that say "image" or "mask" are left out. Names may
differ by a suffix, a prefix or a word that is the same in all of them (`x.png` and `x_mask.png`), by capitals, by the
Unicode form, and by one more suffix of a file (`x.png.png`). What differs is found by comparing all names of both
sides, and is reported.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

from lungseg_ray.corpus.layouts.roles import Parsed, Side, normal, read_words, words_of
from lungseg_ray.corpus.layouts.tree import ANNOTATION_SUFFIXES, SUFFIXES, Entry
from lungseg_ray.corpus.record import MaskSource

_MOST_COMPARED = 2000
"""Names of each side, at most, that are compared to find out in what they differ."""
_MOST_RULES = 200
_RARE, _FEW_IMAGES = 0.05, 3
"""Differences with words besides those of masks count if more than this share of the masks have them, and more than one
where there are at least three images."""
_NEARLY_ALL = 0.8
"""A difference without a word that says "mask" counts if at least this share of the unmatched names have it."""
_NUMBER = re.compile(r"\d+")
_LAST_NUMBER = re.compile(r"[-_ .]*\(?\d+\)?$")
_PARTS = {"l": "left", "r": "right", "lt": "left", "rt": "right"}
_ANNOTATORS = {"rater", "reader", "annotator", "observer", "expert", "radiologist", "reviewer", "version", "v"}
"""Words before the number of whoever drew a mask, or of one of its versions."""


@dataclass(frozen=True)
class Item:
    """A file that may be an image or a mask.

    Attributes:
        entry: The file; for a mask that is a part of a file, the path is that of its image, as the file has it.
        parsed: What its folders say.
        source: The part of a file that describes the mask; None for a mask that is a whole file.
    """

    entry: Entry
    parsed: Parsed
    source: MaskSource | None = None

    @cached_property
    def name(self) -> str:
        """The name of the file, as it is compared."""
        return normal(self.entry.path.rpartition("/")[2])

    @cached_property
    def stem(self) -> str:
        """The name without all suffixes of image files, as it is compared."""
        return bare(self.name)

    @cached_property
    def rest(self) -> tuple[str, ...]:
        """The folders that do not say what the file is, as they are compared."""
        return tuple(normal(part) for part in self.parsed.rest)


@dataclass(frozen=True)
class Part:
    """A mask file of an image, with what its names say of what it marks.

    Attributes:
        item: The file.
        side: The side of the body; None if the names do not say.
        kind: Words for the marked structure, such as "lung"; empty if the names do not say.
        number: What tells one of several masks of an image from the others; empty if nothing does.
    """

    item: Item
    side: Side | None = None
    kind: tuple[str, ...] = ()
    number: str = ""


@dataclass
class Matches:
    """The result of `match`.

    Attributes:
        parts: The mask files of each image, by the path of the image; empty for an image without a mask.
        ambiguous: The masks that belong to several images, by path, with the paths of these images.
        lonely: The masks that belong to no image.
        differences: What is in the names of masks, or of images, and not in those of their partners; with the number of
            masks for which this holds.
    """

    parts: dict[str, list[Part]]
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    lonely: list[Item] = field(default_factory=list)
    differences: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Rule:
    """A difference of names: how the stem of a mask becomes that of its image.

    Attributes:
        text: The text that differs, for the user.
        change: Returns the stem of the image for the stem of a mask, and what in that of the mask says what it marks;
            None where the rule does not apply.
    """

    text: str
    change: Callable[[str], tuple[str, str] | None]


def bare(name: str) -> str:
    """Returns a name without all suffixes of image files, in lower case."""
    while True:
        shorter = next(
            (
                name[: -len(end)]
                for end in (*SUFFIXES, *ANNOTATION_SUFFIXES)
                if name.endswith(end) and len(name) > len(end)
            ),
            name,
        )
        if shorter == name:
            return name
        name = shorter


def match(images: Sequence[Item], masks: Sequence[Item]) -> Matches:
    """Finds the image of each mask.

    Args:
        images: The images.
        masks: The masks.

    Returns:
        The masks of each image, and what could not be matched.
    """
    found = Matches({item.entry.path: [] for item in images})
    lookup = _Lookup(images)
    waiting = [mask for mask in masks if not _take(found, mask, lookup.of_equal_name(mask))]
    stems = [item.stem for item in images]
    rules = _rules([mask.stem for mask in waiting], stems, found, images, len(masks)) if waiting else []
    # Where names say nothing at all, the masks in the folder of a single image are of that image.
    by_place = not rules and len(waiting) == len(masks)
    for mask in waiting:
        for rule in rules:
            changed = rule.change(mask.stem)
            if changed and _take(found, mask, lookup.near(mask, changed[0]), words_of(changed[1])):
                found.differences[rule.text] += 1
                break
        else:
            alone = lookup.in_folder(mask) if _is_nameless(mask) or (by_place and mask.rest) else []
            if len(alone) == 1:
                # Several of them are parts of one mask, whatever they are named.
                found.parts[alone[0].entry.path].append(Part(mask, mask.parsed.side, mask.parsed.kind, mask.stem))
            else:
                found.lonely.append(mask)
    return found


class _Lookup:
    """Finds images by names and folders."""

    def __init__(self, images: Sequence[Item]) -> None:
        self._by_name: dict[tuple[object, str], list[Item]] = defaultdict(list)
        self._by_stem: dict[tuple[object, str], list[Item]] = defaultdict(list)
        self._by_folder: dict[tuple[str, str], list[Item]] = defaultdict(list)
        self._by_rest: dict[tuple[str, ...], list[Item]] = defaultdict(list)
        self._anywhere: dict[str, list[Item]] = defaultdict(list)
        for item in images:
            self._by_name[item.rest, item.name].append(item)
            self._by_stem[item.rest, item.stem].append(item)
            self._by_rest[item.rest].append(item)
            self._anywhere[item.stem].append(item)
            for folder in set(item.rest):
                self._by_folder[folder, item.stem].append(item)

    def in_folder(self, mask: Item) -> list[Item]:
        """Returns the images in the folder of a mask."""
        return self._by_rest.get(mask.rest, [])

    def of_equal_name(self, mask: Item) -> list[Item]:
        """Returns the images of the name of a mask."""
        # `predict` names the mask of x.png x.png.png, and that of x.jpg x.jpg.png.
        return self._by_name.get((mask.rest, mask.name.rpartition(".")[0])) or self.near(mask, mask.stem)

    def near(self, mask: Item, stem: str) -> list[Item]:
        """Returns the images of a name that share most folders with a mask, whose other folders are left out."""
        if there := self._by_stem.get((mask.rest, stem)):
            return there
        # Names such as view1_frontal.png repeat in each folder, so that not all images of a name are compared: those in
        # fewer folders are looked up, and those in more folders are in the rarest folder of the mask.
        alike = self._anywhere.get(stem, [])
        if len(alike) < 2 ** len(mask.rest):
            fewer = [item for item in alike if len(item.rest) < len(mask.rest) and _within(item.rest, mask.rest)]
        else:
            rests = dict.fromkeys(rest for size in range(len(mask.rest)) for rest in combinations(mask.rest, size))
            fewer = [item for rest in rests for item in self._by_stem.get((rest, stem), ())]
        rarest = min((self._by_folder.get((folder, stem), []) for folder in mask.rest), key=len, default=alike)
        near = fewer + [item for item in rarest if len(item.rest) > len(mask.rest) and _within(mask.rest, item.rest)]
        most = max((_shared(item.rest, mask.rest) for item in near), default=0)
        return [item for item in near if _shared(item.rest, mask.rest) == most]


def _is_nameless(mask: Item) -> bool:
    """Whether the name of a file says that it is a mask, and nothing else, as `mask.png` in the folder of a patient."""
    words = read_words(mask.stem)
    return words.role == "mask" and not any(not word.isdigit() for word in words.others)


def _take(found: Matches, mask: Item, images: Sequence[Item], words: Sequence[str] = ()) -> bool:
    if not images:
        return False
    if len(images) > 1:
        found.ambiguous[mask.entry.path] = [item.entry.path for item in images]
        return True
    found.parts[images[0].entry.path].append(_part(mask, images[0], words))
    return True


def _part(mask: Item, image: Item, words: Sequence[str]) -> Part:
    """Finds out what a mask marks, from words in its name and from the folders that its image does not have."""
    own = Counter(mask.rest) - Counter(image.rest)
    folders = [read_words(folder) for folder in mask.rest if folder in own]
    said = read_words("_".join(words)) if words else None
    side = mask.parsed.side or (said.side if said else None)
    side = side or next((one.side for one in folders if one.side), None)
    letters = [*words, *(word for one in folders for word in one.others)]
    side = side or next((_side(word) for word in letters if word in _PARTS), None)
    others = [word for one in (*folders, *([said] if said else [])) if not one.split for word in one.others]
    kind = tuple(word for word in dict.fromkeys((*mask.parsed.kind, *others)) if not _is_no_kind(word))
    # Numbers tell the parts of a mask apart, but not if they count those who drew the whole of it.
    number = "" if _ANNOTATORS & {*words} else next((word for word in words if word.isdigit()), "")
    return Part(mask, side, kind, number)


def _is_no_kind(word: str) -> bool:
    return word.isdigit() or word in _PARTS or word in _ANNOTATORS


def _side(word: str) -> Side:
    return "left" if _PARTS[word] == "left" else "right"


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether all folders of one path are among those of a longer one, in the same order."""
    rest = iter(long)
    return all(part in rest for part in short)


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return sum((Counter(one) & Counter(other)).values())


def _rules(
    masks: Sequence[str], stems: Sequence[str], found: Matches, images: Sequence[Item], total: int
) -> list[_Rule]:
    """Finds in what the names of unmatched masks differ from those of images; the most frequent difference first.

    Args:
        masks: The names of the unmatched masks.
        stems: The names of all images.
        found: What was matched so far.
        images: All images.
        total: The number of all masks.
    """
    known, some = set(stems), masks[:: max(len(masks) // _MOST_COMPARED, 1)]
    affixes: Counter[tuple[str, str]] = Counter()
    for stem in some:
        affixes.update((place, _NUMBER.sub("#", affix)) for place, affix in _affixes(stem, known))
    # Rare is what few of all masks have, of which those that are equal to images are not among these.
    rare = max(_RARE * total * len(some) / len(masks), 1.0 if len(images) >= _FEW_IMAGES else 0.0)
    affixes = _with_any_words(affixes, rare)
    numbered = _Numbered(known)
    rules = [
        _affix_rule(place, affix, known)
        for (place, affix), count in affixes.most_common(_MOST_RULES)
        if _is_difference(affix, count, len(some), rare) and not numbered.by(place, affix)
    ]
    # Images that have a mask already are left out, so that what differs shows.
    free = [item.stem for item in images if not found.parts[item.entry.path]]
    reverse: Counter[tuple[str, str]] = Counter()
    there = set(masks)
    for stem in free[:: max(len(free) // _MOST_COMPARED, 1)]:
        reverse.update(_affixes(stem, there))
    for (place, affix), count in reverse.most_common():
        if count > 1 and count >= _NEARLY_ALL * min(len(some), len(free)):
            rules.append(_longer_image_rule(place, affix))
    exchanged = _exchange_rule(some, free)
    return [*rules, exchanged] if exchanged else rules


def _affixes(stem: str, known: set[str]) -> Iterable[tuple[str, str]]:
    """Yields what stands before or after the longest known name that is the end or the beginning of a name."""
    for cut in range(len(stem) - 1, 0, -1):
        if stem[:cut].rstrip() in known and _splits(stem, cut):
            yield "suffix", stem[cut:]
            break
    for cut in range(1, len(stem)):
        if stem[cut:].lstrip() in known and _splits(stem, cut):
            yield "prefix", stem[:cut]
            break


def _splits(stem: str, cut: int) -> bool:
    """Whether a name may be cut at a place: not within a number, and not within a word."""
    before, after = stem[cut - 1], stem[cut]
    return not (before.isdigit() and after.isdigit()) and not (before.isalpha() and after.isalpha())


class _Numbered:
    """Whether a difference begins, or ends, with a number by which images are told apart.

    The number then belongs to the name of the image: `x_1_mask` is the mask of `x_1`, and not one of `x`.
    """

    def __init__(self, known: set[str]) -> None:
        self._known = known
        self._found: dict[tuple[str, str], bool] = {}

    def by(self, place: str, affix: str) -> bool:
        number = re.match(r"([-_ .]*)#", affix) if place == "suffix" else re.search(r"#([-_ .]*)$", affix)
        if number is None or len(number[0]) == len(affix):
            return False
        key = place, number[1]
        if key not in self._found:
            self._found[key] = any(map(self._is_numbered(place, re.escape(number[1])), self._known))
        return self._found[key]

    def _is_numbered(self, place: str, sign: str) -> Callable[[str], bool]:
        pattern = re.compile(rf"(?P<name>.+){sign}\d+" if place == "suffix" else rf"\d+{sign}(?P<name>.+)")
        return lambda stem: bool((match := pattern.fullmatch(stem)) and match["name"] in self._known)


def _with_any_words(affixes: Counter[tuple[str, str]], rare: float) -> Counter[tuple[str, str]]:
    """Joins rare differences that have a word of a mask and others, such as a code: "*" then stands for any word."""
    joined: Counter[tuple[str, str]] = Counter()
    for (place, affix), count in affixes.items():
        words = read_words(affix).others if count <= rare and _says_mask(affix) else ()
        for word in words:
            if word not in _PARTS:
                affix = re.sub(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", "*", affix, flags=re.IGNORECASE)
        joined[place, affix] += count
    return joined


def _is_difference(affix: str, count: int, names: int, rare: float) -> bool:
    """Whether a difference tells masks from images, and is not a part of the name of an image that is absent."""
    if _says_mask(affix):
        has_others = any(word not in _PARTS for word in read_words(affix).others) or "*" in affix
        return not has_others or count > rare
    return count > 1 and count >= _NEARLY_ALL * names and _is_word(affix)


def _is_word(affix: str) -> bool:
    return any(character.isalpha() for character in affix) or not affix[0].isalnum() or not affix[-1].isalnum()


def _says_mask(affix: str) -> bool:
    words = read_words(affix)
    return words.role == "mask" or words.side is not None or any(word in _PARTS for word in words.others)


def _affix_rule(place: str, affix: str, known: set[str]) -> _Rule:
    """Returns the rule that leaves out what stands before or after the name of the image; "#" is any number."""
    text = re.escape(affix).replace(r"\#", "#").replace("#", r"\d+").replace(r"\*", r"[^\W\d_]+")
    pattern = re.compile(
        rf"(?P<name>.+?)\s*(?P<affix>{text})" if place == "suffix" else rf"(?P<affix>{text})\s*(?P<name>.+)"
    )

    def change(stem: str) -> tuple[str, str] | None:
        if not (match := pattern.fullmatch(stem)):
            return None
        name = match["name"]
        # If x and x_1 are images, x_mask_1 is the mask of x_1; so is x_mask(1) that of x(1).
        numbered = name + end[0] if (end := _LAST_NUMBER.search(match["affix"])) else ""
        if place == "suffix" and numbered in known:
            return numbered, match["affix"][: -len(end[0])] if end else ""
        # Words that differ from mask to mask say nothing of what is marked.
        return name, affix if "*" in affix else match["affix"]

    return _Rule(affix.strip().replace("#", "<number>").replace("*", "<word>"), change)


def _longer_image_rule(place: str, affix: str) -> _Rule:
    return _Rule(affix.strip(), lambda stem: (stem + affix if place == "suffix" else affix + stem, ""))


def _exchange_rule(masks: Sequence[str], images: Sequence[str]) -> _Rule | None:
    """Finds a beginning or an end that all masks share, in place of another that all images share."""
    if len(masks) < 2 or len(images) < 2:
        return None
    (start, end), (new_start, new_end) = _frame(masks), _frame(images)
    if not (start or end or new_start or new_end):
        return None

    said = f"{start} {end}"

    def change(stem: str) -> tuple[str, str] | None:
        if not (stem.startswith(start) and stem.endswith(end) and len(stem) >= len(start) + len(end)):
            return None
        return new_start + stem[len(start) : len(stem) - len(end)] + new_end, said

    known = set(images)
    if sum((change(stem) or ("", ""))[0] in known for stem in masks) < _NEARLY_ALL * min(len(masks), len(images)):
        return None
    text = " ".join(
        f"{old or 'nothing'} for {new or 'nothing'}" for old, new in ((start, new_start), (end, new_end)) if old != new
    )
    return _Rule(text, change)


def _frame(stems: Sequence[str]) -> tuple[str, str]:
    """Returns the whole words that all names begin with, and those that all names end with."""
    first, last = min(stems), max(stems)
    size = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    start = re.sub(r"(\d+|[^\W\d_]+)$", "", first[:size]) if size < len(first) else ""
    if size < len(first) and not _within_word(stems, size):
        start = first[:size]
    backwards = [stem[::-1] for stem in stems]
    first, last = min(backwards), max(backwards)
    size = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    end = re.sub(r"(\d+|[^\W\d_]+)$", "", first[:size])
    if size < len(first) and not _within_word(backwards, size):
        end = first[:size]
    return start, end[::-1]


def _within_word(stems: Sequence[str], cut: int) -> bool:
    return any(0 < cut < len(stem) and not _splits(stem, cut) for stem in stems)


def families(parts: Mapping[str, Sequence[Part]]) -> dict[tuple[str, ...], int]:
    """Counts the images that have a mask of each kind.

    Args:
        parts: The mask files of each image.

    Returns:
        The number of images by kind, the most frequent kind first.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for found in parts.values():
        counts.update({part.kind for part in found})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
