"""Sorts the files of a tree into images and masks: by their folders, by their names, or as the user says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.matching import Item
from lungseg_ray.corpus.layouts.roles import Roles, read_words, words_of
from lungseg_ray.corpus.layouts.tree import SUFFIXES, Entry, FileTree
from lungseg_ray.errors import UserError


@dataclass
class Sorted:
    """The files of a tree, sorted by what they are.

    Attributes:
        images: Images, or what may be an image.
        masks: Masks, or what may be a mask.
        others: Files that are neither.
        by_name: Whether masks are told from images by the names of files instead of folders.
        by_pixels: Whether they are told from images by their pixels.
    """

    images: list[Item] = field(default_factory=list)
    masks: list[Item] = field(default_factory=list)
    others: list[Item] = field(default_factory=list)
    by_name: bool = False
    by_pixels: bool = False


def readable(tree: FileTree) -> list[Entry]:
    """Returns the files of a tree that have a suffix of images and masks."""
    return [entry for entry in tree.files if entry.path.lower().endswith(SUFFIXES)]


def _items(tree: FileTree) -> list[Item]:
    files = readable(tree)
    roles = Roles(entry.path.rpartition("/")[0] for entry in files)
    return [Item(entry, roles.parse(entry.path.rpartition("/")[0])) for entry in files]


def sort_files(tree: FileTree, settings: CorpusSettings) -> Sorted:
    """Sorts the files of a tree.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus, of which `images` and `masks` are used.

    Returns:
        The files. If nothing says which are masks, all are images.

    Raises:
        UserError: If no file has a name that the user gives.
    """
    items = _items(tree)
    if settings.images or settings.masks:
        return _as_told(items, settings)
    by_role: dict[str | None, list[Item]] = defaultdict(list)
    for item in items:
        by_role[item.parsed.role].append(item)
    images, masks, others = by_role["image"] or by_role[None], by_role["mask"], by_role[None]
    if not by_role["image"]:
        others = []
    if masks and images:
        return Sorted(images, masks, others)
    # All in one folder, or in folders that say nothing: masks have a word in their names.
    pool = [*images, *masks]
    marked = [item for item in pool if has_mask_word(item)]
    plain = [item for item in pool if not has_mask_word(item)]
    if not images and not (marked and plain):
        return Sorted([], masks, others)
    return Sorted(plain, marked, others, by_name=True)


def _as_told(items: Sequence[Item], settings: CorpusSettings) -> Sorted:
    """Sorts files by the patterns of corpus.images and corpus.masks."""
    images, masks = (_pattern(texts) for texts in (settings.images, settings.masks))
    found = Sorted()
    for item in items:
        path = item.entry.path
        if masks and masks.fullmatch(path):
            found.masks.append(item)
        elif images.fullmatch(path) if images else item.parsed.role != "mask":
            found.images.append(item)
        elif not masks and item.parsed.role == "mask":
            found.masks.append(item)
        else:
            found.others.append(item)
    found.images, found.masks = _without_common_folders(found.images), _without_common_folders(found.masks)
    for role, texts, there in (("images", settings.images, found.images), ("masks", settings.masks, found.masks)):
        if texts and not there:
            raise UserError(
                f"corpus.{role}: no file below corpus.root matches {', '.join(texts)}. Expected a folder, such as "
                "scans, or a pattern, such as '*/scans/*.png'."
            )
    return found


def _without_common_folders(items: Sequence[Item]) -> list[Item]:
    """Leaves out the folders that all files have in common, such as the one that the user named."""
    rests = [item.parsed.rest for item in items]
    shared = 0
    while rests and all(len(rest) > shared and rest[shared] == rests[0][shared] for rest in rests):
        shared += 1
    return [Item(item.entry, replace(item.parsed, rest=item.parsed.rest[shared:])) for item in items]


def _pattern(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Compiles folders and patterns; a folder stands for everything in it."""
    parts = [
        translate(text) if any(sign in text for sign in "*?[") else rf"(?s:{re.escape(text.strip('/'))}/.*)"
        for text in texts
    ]
    return re.compile("|".join(parts)) if parts else None


def has_mask_word(item: Item) -> bool:
    """Returns whether the name of a file says that it is a mask."""
    words = words_of(item.stem)
    if len(words) == 1:
        # A file of that name alone is the mask of the image beside it.
        return "/" in item.entry.path and read_words(item.stem).role == "mask"
    return len(words) > 1 and any(read_words(word).role == "mask" for word in (words[0], words[-1], *words[-2:]))
