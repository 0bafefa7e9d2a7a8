"""Reads the JSON files of a run or a sweep, which someone may have changed or another version may have written."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import shown

Content = TypeVar("Content")


def read_stored(place: Location, kind: TypeAdapter[Content]) -> Content | None:
    """Reads a JSON file.

    Args:
        place: The file.
        kind: The type of its content.

    Returns:
        The content; None if there is no such file.

    Raises:
        UserError: If it holds something else.
        OSError: If it cannot be read; a `StorageError` for a bucket.
    """
    try:
        text = place.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{place}: expected what this version writes there, found something else ({shown(where)}: "
            f"{shown(first['msg'])}). Restore the file; nothing was changed."
        ) from None
