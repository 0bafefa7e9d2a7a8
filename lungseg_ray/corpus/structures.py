"""The names of the structures that masks mark, and the labels that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lungseg_ray.config import CorpusSettings
from lungseg_ray.errors import BadFileError
from lungseg_ray.names import BACKGROUND_NAMES

_IGNORED = {"ignore", "ignored"}
# Words of names that do not say which structure it is.
_GENERAL = {"mask", "label", "object", "structure", "region", "roi", "segment", "class", "foreground", "area", "shape"}
_GENERAL |= {"left", "right", "l", "r", "links", "link", "recht", "rechts", "gauche", "droite", "droit", "both", "all"}
_GENERAL |= {"izquierda", "izquierdo", "derecha", "derecho", "upper", "lower", "lobe", "side", "part"}
# What is marked in chest X-rays beside the lungs: of these alone, none counts unless it is the class.
_OTHERS = {"heart", "cardiac", "clavicle", "spine", "vertebra", "vertebrae", "rib", "sternum", "scapula", "bone"}
_OTHERS |= {"trachea", "bronchus", "bronchi", "aorta", "mediastinum", "diaphragm", "abdomen", "stomach", "liver"}
_OTHERS |= {"breast", "infection", "opacity", "opacitie", "nodule", "pneumothorax", "pneumothorace", "pneumonia"}
_OTHERS |= {"mass", "lesion", "tumor", "tumour", "consolidation", "effusion", "edema", "oedema", "covid"}
_OTHERS |= {"tube", "catheter", "device", "pacemaker", "marker", "text"}


def words_of(name: str) -> tuple[str, ...]:
    """Returns the words of the name of a structure, in lower case and as singulars, by which names are compared."""
    words = re.findall(r"[^\W_]+", name.lower())
    return tuple(word if word.endswith("ss") else word.rstrip("s") or word for word in words)


def is_background(name: str) -> bool:
    """Returns whether the name of a structure stands for none."""
    return name.lower().strip("_- ") in BACKGROUND_NAMES


def is_ignored(name: str) -> bool:
    """Returns whether the name stands for pixels that count neither as a structure nor as background."""
    return any(word in _IGNORED for word in words_of(name))


def is_other(name: str, wanted: str) -> bool:
    """Returns whether a name says that a structure is another one than the wanted one, such as a heart for lungs."""
    words = {*words_of(name)}
    return bool(words & _OTHERS) and not words & {*words_of(wanted)}


def counting(names: Iterable[str], wanted: str) -> list[str]:
    """Returns those of several structures that count as the only class of a corpus.

    Args:
        names: The names of the structures.
        wanted: The name of the class.

    Returns:
        The names that share a word with the class; if none does, those that say nothing, such as "left", or the only
        one that may be meant. Empty if nothing says which.
    """
    names = list(names)
    fitting = [name for name in names if {*words_of(name)} & {*words_of(wanted)}]
    general = [name for name in names if all(word in _GENERAL or word.isdigit() for word in words_of(name))]
    unknown = [name for name in names if not is_other(name, wanted)]
    return fitting or general or (unknown if len(unknown) == 1 else [])


def as_classes(names: Iterable[str]) -> list[str]:
    """Returns the names that are classes, in order, each once; background and what is ignored are none."""
    by_words: dict[Sequence[str], str] = {}
    for name in sorted(names):
        if not is_background(name) and not is_ignored(name):
            by_words.setdefault(words_of(name), name)
    return list(by_words.values())


def structure_label(name: str, settings: CorpusSettings) -> int:
    """Returns the label of a named structure.

    Args:
        name: The name in an annotation, such as "left lung"; empty if it has none.
        settings: The settings of the corpus. With one class, a structure has the label 1 if it counts by `structures`
            or, where that is not set, if `counting` it does.

    Raises:
        BadFileError: With the reason `unknown_label` if no class has this name.
    """
    words = words_of(name)
    by_words = {words_of(one): label for label, one in enumerate(settings.class_names, start=1)}
    if is_background(name):
        return 0
    if words in by_words:
        return by_words[words]
    if len(settings.class_names) == 1:
        if settings.structures:
            return int(words in map(words_of, settings.structures))
        return int(bool(settings.unite) or not is_other(name, settings.class_names[0]))
    # The folders "left" and "right" are those of "left lung" and "right lung".
    alike = [
        label
        for class_words, label in by_words.items()
        if words and ({*words} <= {*class_words} or {*class_words} <= {*words})
    ]
    if len(alike) == 1:
        return alike[0]
    raise BadFileError(
        "unknown_label",
        f"expected the structures {', '.join(settings.class_names)} of corpus.class_names, found {name!r}",
    )
