"""What the folders of a corpus say about a file: image or mask, split, and side of the body, by words in their names.

A name is taken apart into words first, so that `images`, `PNGImages`, `img_dir`, `train-images` and `imagesTr` are all
folders of images. A word counts only where the tree as a whole permits it: a folder that contains folders of both
images and masks is a wrapping, whatever its own name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from lungseg_ray.corpus.record import SPLIT_NAMES, Split

Role = Literal["image", "mask"]
Side = Literal["left", "right"]

_IMAGE = {
    "bild",
    "bilder",
    "imagen",
    "imagenes",
    "im\u00e1genes",
    "image",
    "images",
    "img",
    "imgs",
    "im",
    "ims",
    "picture",
    "pictures",
    "photo",
    "photos",
}
_MASK = {
    "mask",
    "masks",
    "msk",
    "msks",
    "maske",
    "masken",
    "masque",
    "masques",
    "mascara",
    "mascaras",
    "m\u00e1scara",
    "m\u00e1scaras",
    "label",
    "labels",
    "lbl",
    "lbls",
    "annotation",
    "annotations",
    "annot",
    "annots",
    "ann",
    "anns",
}
# These words are also in the names of whole corpora ("Lung Segmentation", "chest_xray"), so that they count only where
# no word of the first kind does.
_WEAK_IMAGE = {"cxr", "cxrs", "xray", "xrays", "radiograph", "radiographs", "radiography", "scan", "scans", "dicom"}
_WEAK_IMAGE |= {"dicoms", "dcm", "input", "inputs", "raw", "original", "originals", "orig", "org"}
_WEAK_MASK = {"segmentation", "segmentations", "segmentationclass", "seg", "segs", "gt", "gts", "groundtruth", "truth"}
_WEAK_MASK |= {"target", "targets", "roi", "rois", "contour", "contours", "outline", "outlines", "manual"}
_SIDE: dict[str, Side] = {"left": "left", "right": "right", "links": "left", "rechts": "right"}
_SIDE |= {"rechte": "right", "gauche": "left", "droite": "right", "droit": "right", "izquierda": "left"}
_SIDE |= {"izquierdo": "left", "derecha": "right", "derecho": "right", "\u5de6": "left", "\u53f3": "right"}
# Words that say neither what a file is nor whose it is.
_SHORT = {"tr", "ts"}
"""Words of splits that are certain only beside one of images or masks, as in `imagesTr`: TR is also a country."""
_DEVELOPMENT = {"dev", "development"}
_FILLERS = {"dir", "folder", "folders", "file", "files", "png", "jpg", "jpeg", "tif", "tiff", "dataset", "data", "set"}
_FILLERS |= {
    "ground",
    "all",
    "the",
    "of",
    "and",
    "for",
    "class",
    "classes",
    "only",
    "final",
    "new",
    "resized",
    "processed",
}
_WORD = re.compile(
    r"[A-Z]+(?=[A-Z][a-z])|[A-Z\u00c0-\u00de]?[a-z\u00df-\u00ff]+|[A-Z\u00c0-\u00de]+|\d+|[\u5de6\u53f3]|[^\W\d_A-Za-z\u00c0-\u00ff\u5de6\u53f3]+"
)


@dataclass(frozen=True)
class Words:
    """What the words of one name say.

    Attributes:
        role: Whether they name images or masks; None if neither, or both.
        weak: Whether the role follows from words that also occur in the names of whole corpora.
        split: The split that they name; None if none.
        side: The side of the body that they name; None if none.
        others: The other words, without fillers such as "png" or "dir".
    """

    role: Role | None
    weak: bool
    split: Split | None
    side: Side | None
    others: tuple[str, ...]


def normal(text: str) -> str:
    """Returns a name in the form in which names are compared: Unicode NFC, without differences of capitals."""
    return unicodedata.normalize("NFC", text).casefold()


def words_of(text: str) -> list[str]:
    """Returns the words of a name in lower case; capitals, digits and other characters separate words."""
    return [word.lower() for word in _WORD.findall(unicodedata.normalize("NFC", text))]


@lru_cache(maxsize=65536)
def read_words(name: str) -> Words:
    """Reads the words of the name of a folder.

    Args:
        name: The name, such as `imagesTr` or `lung masks`.

    Returns:
        What they say.
    """
    words = _joined([_known(word) for word in words_of(name)])
    if name.isupper() or not any(word in _IMAGE | _MASK | _WEAK_IMAGE | _WEAK_MASK for word in words):
        # "IMAGES" is one word; "SegmentationClass" and "ground_truth" have two.
        joined = "".join(words)
        words = [joined] if joined in _IMAGE | _MASK | _WEAK_IMAGE | _WEAK_MASK else words
    role, weak = _role(words, _IMAGE, _MASK), False
    if role is None and not {*words} & (_IMAGE | _MASK):
        role, weak = _role(words, _WEAK_IMAGE, _WEAK_MASK), True
    split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
    side = next((_SIDE[word] for word in words if word in _SIDE), None)
    known = _IMAGE | _MASK | _WEAK_IMAGE | _WEAK_MASK | SPLIT_NAMES.keys() | _SIDE.keys() | _FILLERS
    return Words(role, weak and role is not None, split, side, tuple(word for word in words if word not in known))


def _joined(words: Sequence[str]) -> list[str]:
    """Joins two words that name a split together, such as "hold" and "out"."""
    found: list[str] = []
    for word in words:
        if found and found[-1] + word in SPLIT_NAMES:
            found[-1] += word
        else:
            found.append(word)
    return found


def _known(word: str) -> str:
    """Returns the word of a role in which a longer word ends, such as "masks" for "lungmasks"; else the word itself."""
    if word in _IMAGE | _MASK or len(word) < 6:
        return word
    ends = (known for known in (*_IMAGE, *_MASK) if len(known) > 3 and word.endswith(known))
    return max(ends, key=len, default=word)


def _role(words: list[str], image: set[str], mask: set[str]) -> Role | None:
    images, masks = (any(word in kind for word in words) for kind in (image, mask))
    if images and masks:
        # "image_masks" are masks; "images and masks" are both.
        return "mask" if len(words) == 2 and words[1] in mask else None
    return "image" if images else "mask" if masks else None


@dataclass(frozen=True)
class Parsed:
    """What the path of a file says.

    Attributes:
        role: Whether it is an image or a mask; None if its folders do not say.
        folder: The folder that says so, a path; empty if none does.
        split: The split that a folder names; None if none does.
        side: The side of the body that a folder names; None if none does.
        kind: The other words of the folder that says the role, such as "lung" or "infection"; a corpus may have masks
            of several kinds.
        rest: The folders above the file, in their order, without those of role and side.
    """

    role: Role | None
    folder: str
    split: Split | None
    side: Side | None
    kind: tuple[str, ...]
    rest: tuple[str, ...]


class Roles:
    """Reads the folders of all files of a tree.

    Args:
        folders: The paths of all folders that contain files to be read, with "/" between their parts.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self._parsed: dict[str, Parsed] = {}
        paths = {folder for folder in folders if folder}
        siblings: dict[str, set[str]] = defaultdict(set)
        for path in paths:
            parts = path.split("/")
            for depth, part in enumerate(parts):
                siblings["/".join(parts[:depth])].add(part)
        self._beside_masks = {path for above, names in siblings.items() for path in _named_as_masks(above, names)}
        roles: dict[str, set[Role]] = defaultdict(set)
        for path in paths:
            parts = path.split("/")
            for depth in range(len(parts), 0, -1):
                words = self._words(parts[:depth])
                if words.role:
                    for above in range(depth):
                        roles["/".join(parts[:above])].add(words.role)
        self._wrappings = {path for path, found in roles.items() if len(found) > 1}
        self._splits = {above: splits_of(names) for above, names in siblings.items()}

    def parse(self, folder: str) -> Parsed:
        """Reads the path of a folder.

        Args:
            folder: The path below the root of the corpus; empty for the root.
        """
        if folder not in self._parsed:
            self._parsed[folder] = self._parse(folder)
        return self._parsed[folder]

    def _words(self, parts: Sequence[str]) -> Words:
        words = read_words(parts[-1])
        return replace(words, role="image", weak=True) if "/".join(parts) in self._beside_masks else words

    def _parse(self, folder: str) -> Parsed:
        parts = folder.split("/") if folder else []
        paths = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        words = [self._words(parts[: depth + 1]) for depth in range(len(parts))]
        bearing = [depth for depth, one in enumerate(words) if one.role and paths[depth] not in self._wrappings]
        # Weak words count only where no other word says a role.
        bearing = [depth for depth in bearing if not words[depth].weak] or bearing
        role = words[bearing[-1]].role if bearing else None
        same = [depth for depth in bearing if words[depth].role == role]
        above = ["", *paths[:-1]] if paths else []
        found = [self._splits.get(folder, {}).get(part) for folder, part in zip(above, parts, strict=True)]
        split = next((one for one in reversed(found) if one), None)
        side = next((one.side for one in reversed(words) if one.side), None) if role == "mask" else None
        dropped = {*same, *(depth for depth, one in enumerate(words) if one.side and role == "mask")}
        kind = tuple(word for depth in sorted(dropped) for word in words[depth].others if not word.isdigit())
        rest = tuple(
            part if depth not in dropped else str(words[depth].split)
            for depth, part in enumerate(parts)
            if depth not in dropped or words[depth].split
        )
        return Parsed(role, paths[same[-1]] if same else "", split, side, kind, rest)


def _named_as_masks(folder: str, names: Iterable[str]) -> Iterator[str]:
    """Yields the paths of folders whose names say no role, and else the same as that of a folder of masks beside them.

    `ISIC_Training_Data` is such a folder beside `ISIC_Training_GroundTruth`.
    """
    words = {name: read_words(name) for name in names}
    if any(one.role == "image" for one in words.values()):
        return
    # One other word, such as that of "lung" beside "lung_masks", says what is marked, and not which set it is.
    masks = {(one.others, one.split) for one in words.values() if one.role == "mask" and len(one.others) > 1}
    for name, one in words.items():
        if one.role is None and (one.others, one.split) in masks:
            yield f"{folder}/{name}" if folder else name


def splits_of(names: Iterable[str]) -> dict[str, Split | None]:
    """Returns the splits that the names of folders in one place, or of roots, say.

    A word of a split in a longer name, such as "Brixia test of time", and a short one, which may be that of a country,
    count only if all names have one, and one of them is to train. Where one is named by development and another by
    validation, the first is to train.


    Args:
        names: The names.
    """
    words = {name: read_words(name) for name in names}
    said = {one.split for one in words.values()}
    together = None not in said and len(said) > 1 and "train" in said
    found = {
        name: one.split if together or (len(one.others) <= 1 and (one.role or not {*words_of(name)} & _SHORT)) else None
        for name, one in words.items()
    }
    if "train" not in found.values():
        develops = [name for name, split in found.items() if split == "val" and {*words_of(name)} & _DEVELOPMENT]
        if develops and len(develops) < sum(split == "val" for split in found.values()):
            found |= dict.fromkeys(develops, "train")
    return found
