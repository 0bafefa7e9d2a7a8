"""The types of single settings: how a place, a colour or a name is read from text, and how it is written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator

from lungseg_ray.errors import UserError
from lungseg_ray.names import ARCHITECTURES, PRESETS
from lungseg_ray.storage import Location, locate

ENVIRONMENT_PREFIX = "LUNGSEG_"
SALT = f"{ENVIRONMENT_PREFIX}SALT"
"""The environment variable with the salt of the keys that replace the paths and patients of DICOM files. It is a secret
and therefore not a setting, because settings are written to files."""
SERVICE_PREFIX = f"{ENVIRONMENT_PREFIX}SERVE_"
"""What the variables of `deploy/serve.py` begin with, which are no settings."""
Share = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[Literal[1, 3], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]


def _located(value: object) -> Location:
    """Returns the location that a text names. It is absolute, because workers have another current directory."""
    if isinstance(value, Location):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a path or an s3:// address, found {value!r}")
    return locate(value)


class Roots(tuple[Location, ...]):
    """Several roots of one corpus."""

    __slots__ = ()

    def __str__(self) -> str:
        return " and ".join(map(str, self))


def _located_or_phantom(value: object) -> Location | Roots | Literal["phantom"]:
    if isinstance(value, list | tuple):
        roots = Roots(_located(one) for one in value)
        if not roots or len(set(roots)) < len(roots):
            raise ValueError(f"expected different folders, found {[str(root) for root in roots]}")
        return roots if len(roots) > 1 else roots[0]
    return PHANTOM if value == PHANTOM else _located(value)


def _as_text(value: Location | Roots | str) -> str | list[str]:
    return [str(root) for root in value] if isinstance(value, Roots) else str(value)


def as_written(text: str) -> Any:
    """Returns a default that becomes a location when the settings are read, so that `--help` shows it as written."""
    return text


def _mask_value(value: object) -> int | str:
    """Returns a value of a mask as a number, or a colour as `#rrggbb`."""
    text = str(value).strip().lower()
    if text.lstrip("-").isdigit():
        return int(text)
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdigit() and int(part) < 256 for part in parts):
        text = "#{:02x}{:02x}{:02x}".format(*map(int, parts))
    if not re.fullmatch("#[0-9a-f]{6}", text):
        raise ValueError(f"expected a number or a colour such as #ff0000 or 255,0,0, found {value!r}")
    return text


def _one_or_several(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list | tuple) else value


def _known(name: str, names: Sequence[str], kind: str) -> str:
    """Returns the known spelling of a name that may be written in upper or lower case.

    Args:
        name: The name to look up.
        names: The known names.
        kind: What the name is, for the message.

    Raises:
        ValueError: If no known name equals it; the message suggests the nearest one.
    """
    by_lower = {known.lower(): known for known in names}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    meant = f" Did you mean {by_lower[near[0]]}?" if near else ""
    raise ValueError(f"there is no {kind} {name!r}.{meant} Expected one of {', '.join(names)}.")


def _architecture(name: str) -> str:
    return _known(name, ARCHITECTURES, "architecture")


def _preset(name: str) -> str:
    return _known(name, PRESETS, "augmentation preset")


@lru_cache(maxsize=256)
def _encoder(name: str) -> str:
    if name == DEFAULT_ENCODER:
        return name
    # The import takes seconds, because the lists of encoders come from the libraries that build them. The default
    # encoder is known to exist and avoids the import.
    from lungseg_ray.models.factory import known_encoder

    try:
        return known_encoder(name)
    except UserError as error:
        raise ValueError(str(error)) from None


def _file_name(text: str) -> str:
    if text in ("", ".", "..") or any(sign in text for sign in "/\\\0"):
        raise ValueError(f"expected the name of a file in this folder, found {text!r}")
    return text


def _absolute_file(text: str) -> str:
    return str(Path(text).absolute()) if Path(text).is_file() else text


def _node_folder(text: str) -> str:
    if "://" in text:
        raise ValueError(f"expected auto, off, or a folder on the disk of each node, found {text!r}")
    return text if text in ("auto", "off") else str(Path(text).absolute())


PHANTOM: Final = "phantom"
DEFAULT_ENCODER = "timm-regnety_004"
Device = Literal["auto", "cpu", "cuda"]
Place = Annotated[Location, PlainValidator(_located), PlainSerializer(str, when_used="json")]
"""A folder or a file that the user names by a path or an s3:// address. Stored settings contain its address."""
CorpusRoot = Annotated[
    Location | Roots | Literal["phantom"],
    PlainValidator(_located_or_phantom),
    PlainSerializer(_as_text, when_used="json"),
]
FileName = Annotated[str, AfterValidator(_file_name)]
"""The name of a file or a folder within another one, in which stored names must stay."""
MaskValue = Annotated[int | str, PlainValidator(_mask_value)]
Size = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]
"""Height and width of the input of a network, pixels."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Architecture = Annotated[str, AfterValidator(_architecture)]
Encoder = Annotated[str, AfterValidator(_encoder)]
Preset = Annotated[str, AfterValidator(_preset)]
WeightsName = Annotated[str, AfterValidator(_absolute_file)]
"""The name of published weights, or a path of a file, which becomes absolute."""
NodeFolder = Annotated[str, AfterValidator(_node_folder)]
"""A folder on the disk of each node, which becomes absolute, or `auto` or `off`."""
OneOrSeveral = BeforeValidator(_one_or_several)
"""Takes a list of one value for the value alone, which the command line makes of every value that may be a list."""
