"""Chooses the classes of a corpus, and the labels of the values of its masks, by the names of structures."""

from __future__ import annotations

from typing import Literal

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.listing import Listing
from lungseg_ray.corpus.structures import as_classes, counting, is_ignored, structure_label
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.text import shown


def choose_classes(listing: Listing, settings: CorpusSettings) -> tuple[CorpusSettings, list[str]]:
    """Takes the classes, or what counts as the only class, from the structures of a corpus, where the user does not.

    Args:
        listing: The listing of the corpus.
        settings: The settings of the user.

    Returns:
        The settings with the classes, and lines for the user.

    Raises:
        UserError: If none of the structures is named as the class.
    """
    names = as_classes([*listing.structures, *listing.value_names.values()])
    if settings.unite is False and names and not {"classes", "class_names"} & settings.model_fields_set:
        said = ", ".join(f"{label} {name}" for label, name in enumerate(names, start=1))
        classes = {"classes": len(names) + 1 if len(names) > 1 else 1, "class_names": names}
        return settings.model_copy(update=classes), [f"classes: {said} (corpus.unite, corpus.class_names)"]
    if settings.classes > 2 or settings.unite or settings.structures or not names:
        return settings, []
    (wanted,) = settings.class_names
    counted = counting(names, wanted)
    if not counted:
        raise UserError(
            f"{settings.root}: the masks mark {', '.join(map(shown, names))}, and the class is {wanted}. Name the "
            f"class, such as --corpus.class_names {shown(names[0])!r}, or those that are {wanted}, such as "
            f"--corpus.structures {shown(names[0])!r}, or count all of them: --corpus.unite true"
        )
    if len(counted) == len(names):
        return settings, []
    rest = ", ".join(shown(name) for name in names if name not in counted)
    said = f"structures: {', '.join(map(shown, counted))}; {rest} count as background (corpus.structures, corpus.unite)"
    return settings.model_copy(update={"structures": counted}), [said]


def known_values(listing: Listing, settings: CorpusSettings) -> dict[int | str, int | Literal["ignore"]]:
    """Returns the labels of the values or colours that a file of the corpus names, where the user sets none.

    Args:
        listing: The listing of the corpus.
        settings: The settings, with the classes.

    Raises:
        UserError: If no class has the name of a value.
    """
    if settings.mask_values:
        return {}
    labels: dict[int | str, int | Literal["ignore"]] = {}
    try:
        for value, name in listing.value_names.items():
            key = int(value) if value.isdecimal() else value
            labels[key] = "ignore" if is_ignored(name) else structure_label(name, settings)
    except BadFileError as error:
        raise UserError(
            f"{settings.root}: {error.detail}. Set corpus.class_names, or the labels of values with corpus.mask_values."
        ) from None
    return labels
