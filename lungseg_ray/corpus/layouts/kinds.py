"""Chooses which mask files of an image are used, where files mark several things or were drawn by several people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Listing
from lungseg_ray.corpus.layouts.matching import Matches, Part, families
from lungseg_ray.corpus.record import Record
from lungseg_ray.corpus.structures import is_other, structure_label, words_of
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.text import named, shown

Kind = tuple[str, ...]
"""Words for what a mask marks; empty if its names do not say."""
_FEW = 2
"""So few images with several masks are set aside, whatever their share."""


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


def require_single(name: str, matches: Matches, *, private: bool = False) -> None:
    """Checks that the names of the masks of an image tell them apart, as those of annotators do not.

    Args:
        name: The name of the corpus, for the message.
        matches: The masks of each image.
        private: Whether the names of files may identify a person, so that none is shown.

    Raises:
        UserError: If they do not for most images.
    """
    marked = [parts for parts in matches.parts.values() if parts]
    alike = [same for parts in marked if (same := same_part(parts))]
    if len(alike) > max(len(marked) / 2, _FEW):
        such = "" if private else f", such as {named(alike[0])}"
        raise UserError(
            f"{name}: {len(alike)} of {len(marked)} images have several masks whose names do not say what each "
            f"marks{such}. Expected one mask for an image. If they are of several annotators, "
            "name the folder of one, or a pattern of its files, such as --corpus.masks '*_reader1.png'"
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


def structure_of(part: Part) -> str:
    """Returns words for what a mask file marks, such as "left lung"; empty if its names say nothing."""
    return " ".join([*([part.side] if part.side else []), *part.kind])


def with_structures(listing: Listing, settings: CorpusSettings) -> tuple[Listing, list[str]]:
    """Keeps what the names of mask files say that they mark, if all of them do and distinguish several structures.

    Args:
        listing: The listing, whose records have what `structure_of` says.
        settings: The settings of the corpus.

    Returns:
        The listing, and the names of the structures; none if the names of some files do not say them.

    Raises:
        UserError: If `corpus.unite` is false, and some of the files that make a mask together do not say it.
    """
    found = sorted({source.structure for record in listing.records for source in record.masks})
    # Words that never distinguish two masks of an image may be those of hospitals or patients.
    distinct = any(len({source.structure for source in record.masks}) > 1 for record in listing.records)
    if len(found) > 1 and all(found) and (distinct or all(_is_class(name, settings) for name in found)):
        return listing, found
    several = next((record for record in listing.records if len(record.masks) > 1), None)
    if several and settings.unite is False:
        files = named([source.uri.rpartition("/")[2] for source in several.masks])
        such = "" if several.private else f", such as {files} of {shown(several.image_id)}"
        raise UserError(
            f"corpus.unite is false, and the names of masks do not all say what they mark{such}. Expected a name with "
            "a word for each structure, such as left or heart."
        )

    def nameless(record: Record) -> Record:
        return replace(record, masks=tuple(replace(source, structure="") for source in record.masks))

    return replace(listing, records=[nameless(record) for record in listing.records]), []


def _is_class(name: str, settings: CorpusSettings) -> bool:
    """Whether one of several classes has the name of a structure."""
    try:
        return len(settings.class_names) > 1 and structure_label(name, settings) > 0
    except BadFileError:
        return False
