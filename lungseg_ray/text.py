"""Text for people: names from outside made printable, counts and durations in words."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 120
_NAMED = 8


def without_suffix(path: str) -> str:
    """The path without the last suffix of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name[1:] else name)


def escaped(text: str) -> str:
    r"""The text with what cannot be printed written as `\n`, and bytes of a name that are not UTF-8 as `\xff`."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def shown(text: str, most: int = _SHOWN) -> str:
    """The text as a message may hold it: printable, and no longer than `most` characters and a few."""
    return escaped(text) if len(text) <= most else f"{escaped(text[:most])}... ({len(text)} characters)"


def named(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(shown(name) for name in names[:_NAMED]) or "nothing") + more


def is_utf8(text: str) -> bool:
    """Whether a path is UTF-8; Python gives other bytes of a name as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def duration(seconds: float) -> str:
    """Seconds for a person: `45 s`, `12.5 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(number: int, word: str) -> str:
    """A number of things: `1 seed`, `3 seeds`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
