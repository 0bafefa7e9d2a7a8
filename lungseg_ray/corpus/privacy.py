"""Keys in place of identities: one person has one key, and nobody finds the person from it without the salt."""

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

_LEAST = 16
_DIGITS = 16


@dataclass(frozen=True)
class Salt:
    """What makes keys. It is a secret: whoever has it can try out all ids of a hospital.

    Attributes:
        source: where it was found; may be shown.
    """

    source: str
    _secret: bytes = field(repr=False)

    def key(self, kind: str, text: str) -> str:
        """The key of a text: 16 hexadecimal digits, the first of its HMAC-SHA256.

        Args:
            kind: of thing that the text names, so that a patient and a study of one name have two keys.
            text: an identity.
        """
        return hmac.new(self._secret, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def find_salt() -> Salt:
    """The salt of this user: the variable LUNGSEG_SALT, or a file in the home that is made once.

    Raises:
        UserError: if the variable holds too little to be a secret, or if the file can be neither read nor made.
    """
    text = os.environ.get(SALT)
    if text is not None:
        if len(text) < _LEAST:
            raise UserError(f"{SALT}: expected a secret of at least {_LEAST} characters, found {len(text)}.")
        return Salt(SALT, text.encode())
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
    """Writes a salt before it has its name; of two that come at the same moment, one makes it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".salt-{secrets.token_hex(4)}")
    part.touch(mode=0o600)
    part.write_text(secrets.token_hex(32))
    try:
        with suppress(FileExistsError):
            os.link(part, place)
    finally:
        part.unlink()
