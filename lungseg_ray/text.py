"""Text for users: external names in a printable form, and counts and durations in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

_SHOWN = 120
"""Longer texts than this, in characters, are cut by `shown` unless the caller gives another limit."""
_LONGEST_ADDRESS = 4096
_QUERY = re.compile(r"\?\S*|[#;][^\s#;=]*=\S*")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#$~!&])")
_NAMED = 8
"""A message lists at most this number of names."""


def without_suffix(path: str) -> str:
    """Returns a path without the last suffix of its last component; a leading dot does not start a suffix."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name[1:] else name)


def escaped(text: str) -> str:
    r"""Returns a text in a printable form.

    Characters that are not printable are written as Python escapes such as `\n`, and bytes of a file name that are not
    UTF-8 as `\xff`.

    Args:
        text: The text; Python represents bytes that are not UTF-8 by lone surrogates.

    Returns:
        The text with escapes.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def printable(message: str) -> str:
    """Returns a message of several lines as a terminal may get it, whatever names from outside are in it.

    Characters that are not printable, such as those that begin escape sequences, become escapes, but for the ends of
    lines and tabs. What may be secret in an address is left out: a name or a password before "@", and what follows "?".

    Args:
        message: The message.
    """
    message = without_secrets(message)
    if message.isprintable():
        return message
    return "".join(one if one.isprintable() or one in "\n\t" else _escape(one) for one in message)


def markdown(text: str) -> str:
    """Returns a text from outside as it stands in a line of Markdown, where none of it is markup.

    Args:
        text: The text.
    """
    return _MARKUP.sub(r"\\\1", escaped(text))


def without_secrets(message: str) -> str:
    """Returns a message without what may be secret in the addresses in it.

    Args:
        message: The message.
    """
    if "://" not in message:
        return message
    first, *others = message.split("://")
    return "://".join([first, *(_hidden(rest) for rest in others)])


def _hidden(rest: str) -> str:
    """Returns what follows the scheme of an address, up to the next one, without names, passwords and queries."""
    address = rest.split(maxsplit=1)[0] if rest.split() else ""
    # A password may have blanks and quotes in it, and then ends at the last "@" of the line.
    line = rest.partition("\n")[0]
    at = line.rfind("@", 0, _LONGEST_ADDRESS)
    if at >= 0 and ("@" in address or ":" in address.split("/", 1)[0]):
        rest, address = "***" + rest[at:], "***" + address[at:] if "@" in address else "***"
    match = _QUERY.search(rest, 0, len(rest.partition("\n")[0]))
    if match and not any(sign.isspace() for sign in rest[: match.start()]):
        return rest[: match.start()] + match[0][0] + "***" + rest[match.end() :]
    return rest


def free_name(name: str, taken: Collection[str]) -> str:
    """Returns the name of a column of the corpus in a table that has columns of its own.

    Args:
        name: The name of the column in the corpus.
        taken: The names of the other columns.

    Returns:
        The name; one that is taken starts with `group_`.
    """
    return free_name(f"group_{name}", taken) if name in taken else name


def shown(text: str, most: int = _SHOWN) -> str:
    """Returns a text as a message may contain it: printable and of limited length.

    Args:
        text: The text.
        most: Number of characters of the text after which it is cut.

    Returns:
        The text with escapes, which may be longer than `most`; if it was cut, its length is added.
    """
    text = without_secrets(text)
    return escaped(text) if len(text) <= most else f"{escaped(text[:most])}... ({len(text)} characters)"


def named(names: Sequence[str]) -> str:
    """Lists some names for a message: the first ones, and how many more there are.

    Args:
        names: The names.

    Returns:
        The list, separated by commas; "nothing" if there are no names.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(shown(name) for name in names[:_NAMED]) or "nothing") + more


def is_utf8(text: str) -> bool:
    """Returns whether a path is valid UTF-8; Python represents other bytes of a file name as lone surrogates."""
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
    """Formats a duration in seconds for users: `45 s`, `12.5 min`, `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(number: int, word: str) -> str:
    """Formats a number of things, with the plural in s: `1 seed`, `3 seeds`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def first_line(error: BaseException) -> str:
    """Returns the kind and the first line of an error; of an error of Ray, those of its cause where it has one."""
    inner = getattr(error, "health_check_failure", None) or getattr(error, "cause", None) or error
    return f"{type(inner).__name__}: {next(iter(str(inner).strip().splitlines()), '')}"[:200]
