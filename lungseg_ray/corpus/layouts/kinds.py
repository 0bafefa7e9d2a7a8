"""Chooses which mask files of an image are used, where files mark several things or were drawn by several people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.matching import Matches, Part, families
from lungseg_ray.corpus.structures import is_other, words_of
from lungseg_ray.errors import UserError
from lungseg_ray.text import named

Kind = tuple[str, ...]
"""Words for what a mask marks; empty if its names do not say."""


def choose_kinds(name: str, matches: Matches, settings: CorpusSettings) -> set[Kind]:
    """Returns the kinds of masks that are used: all, or those of the only class where files mark other things, too.

    Args:
        name: The name of the corpus, for the message.
        matches: The masks of each image.
        settings: The settings of the corpus.

    Raises:
        UserError: If images have masks of several kinds, and nothing says which is meant.
    """
    kinds = families(matches.parts)
    if len(kinds) < 2 or settings.classes > 2 or settings.unite is not None:
        return set(kinds)
    wanted = settings.class_names[0]
    others = {kind for kind in kinds if kind and is_other(" ".join(kind), wanted)}
    if not any(len({part.kind for part in parts}) > 1 for parts in matches.parts.values()):
        # Each image has one kind, so that the words may be those of hospitals.
        return set(kinds) - others if len(others) < len(kinds) else set(kinds)
    fitting = {kind for kind in kinds if {*words_of(" ".join(kind))} & {*words_of(wanted)}}
    fitting = fitting or {kind for kind in kinds if not kind and len(others) == len(kinds) - 1}
    if len(fitting) == 1:
        return fitting
    lines = [f"  {' '.join(kind) or 'without a word'}: {count} images" for kind, count in kinds.items()]
    raise UserError(
        f"{name}: images have masks of several kinds, found\n"
        + "\n".join(lines)
        + "\nName the one that is meant, with --corpus.masks FOLDER or a pattern of its files; or unite all of them: "
        "--corpus.unite true"
    )


def require_single(name: str, matches: Matches) -> None:
    """Checks that the names of the masks of an image tell them apart, as those of annotators do not.

    Args:
        name: The name of the corpus, for the message.
        matches: The masks of each image.

    Raises:
        UserError: If they do not for most images.
    """
    marked = [parts for parts in matches.parts.values() if parts]
    alike = [same for parts in marked if (same := same_part(parts))]
    if len(alike) > len(marked) / 2:
        raise UserError(
            f"{name}: {len(alike)} of {len(marked)} images have several masks whose names do not say what each "
            f"marks, such as {named(alike[0])}. Expected one mask for an image. If they are of several annotators, "
            "name the folder of one, or a pattern of its files: --corpus.masks '*_rater1.png'"
        )


def same_part(parts: Sequence[Part]) -> list[str]:
    """Returns the mask files of an image that cannot be told apart by their names; empty if all can."""
    by_part: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for part in parts:
        place = part.item.source.uri if part.item.source else part.item.entry.path
        by_part[part.side, part.kind, part.number].append(place)
    return next((places for places in by_part.values() if len(places) > 1), [])


def used_parts(parts: Mapping[str, Sequence[Part]], kinds: set[Kind]) -> dict[str, list[Part]]:
    """Returns the mask files of each image that are of some kinds, by the path of the image."""
    return {path: [part for part in several if part.kind in kinds] for path, several in parts.items()}
