"""Replaces identities by keys: a person has one key, and nobody can find the person from it without the salt."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lungseg_ray.config import SALT
from lungseg_ray.errors import UserError
from lungseg_ray.home import is_temporary

_LEAST = 16
_DIGITS = 16


@dataclass(frozen=True)
class Salt:
    """A secret from which keys are computed.

    It must be kept secret, because whoever has it can try out all IDs of a hospital.

    Attributes:
        source: Where the salt was found: the name of the variable or the path of the file. It may be displayed.
    """

    source: str
    _secret: bytes = field(repr=False)

    def key(self, kind: str, text: str) -> str:
        """Computes the key of an identity.

        Args:
            kind: The kind of identity, such as "patient" or "study". A patient and a study with the same text have
                different keys.
            text: The identity.

        Returns:
            The first 16 hexadecimal digits of the HMAC-SHA256 of kind and text.
        """
        return hmac.new(self._secret, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def find_salt() -> Salt:
    """Returns the salt of this user from the variable LUNGSEG_SALT, or else from a file.

    The file is `lungseg-ray/salt` in XDG_CONFIG_HOME, or in `.config` in the home folder. It is created once, with a
    random secret.

    Returns:
        The salt.

    Raises:
        UserError: If the variable or the file is too short to be a secret (fewer than 16 characters), or if the file
            can be neither read nor created.
    """
    text = os.environ.get(SALT)
    if text is not None:
        if len(text) < _LEAST:
            raise UserError(f"{SALT}: expected a secret of at least {_LEAST} characters, found {len(text)}.")
        return Salt(SALT, text.encode())
    if not os.environ.get("XDG_CONFIG_HOME") and is_temporary():
        raise UserError(
            "HOME: there is no home folder that can be written, so that the salt of patients' keys would be lost. Set "
            f"{SALT} to a secret of your own, or HOME to a folder that stays."
        )
    place = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lungseg-ray/salt"
    try:
        if not place.exists():
            _make(place)
        secret = place.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"{place}: the salt of patients' keys can be neither read nor made ({error.strerror}). Set {SALT} to a "
            "secret of your own."
        ) from error
    if len(secret) < _LEAST:
        raise UserError(f"{place}: expected a secret of at least {_LEAST} characters. Delete it to have one made.")
    return Salt(str(place), secret)


def _make(place: Path) -> None:
    """Writes a salt under a temporary name and links it to its name, so that of two processes only one creates it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".salt-{secrets.token_hex(4)}")
    part.touch(mode=0o600)
    part.write_text(secrets.token_hex(32))
    try:
        with suppress(FileExistsError):
            os.link(part, place)
    finally:
        part.unlink()
