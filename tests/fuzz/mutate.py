"""Small damage where it tells: in headers, tags and tables, in lengths, at ends; and checksums that fit again."""

from __future__ import annotations

import re
import zlib
from random import Random

_PNG, _PARQUET = b"\x89PNG\r\n\x1a\n", b"PAR1"
# What follows one of these is structure: markers of JPEG and JPEG 2000, chunks of PNG, items and image tags of DICOM.
_STRUCTURE = re.compile(
    rb"\xff[\x4f-\x93\xc0-\xfe]|IHDR|PLTE|tRNS|IDAT|\xfe\xff\x00\xe0|\x28\x00.\x00|\xe0\x7f\x10\x00"
)
_TELLING = [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff\xff", b"\0\0", b"\0\x20", b"\x20\0", b"\xff\xff\xff\x7f"]
_TELLING += [b"\xff" * 4, b"\x80\0\0\0", b"\0" * 4, b"9" * 20, b"\n", b'"', b",", b"\xff" * 8]


def mutate(data: bytes, random: Random, *, most: int = 1 << 16) -> bytes:
    """The file with one to four small changes, at most `most` bytes of it."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        _change(changed, random)
    found = bytes(changed)
    return (mended(found, data) if random.random() < 0.8 else found)[:most]


def mended(changed: bytes, data: bytes) -> bytes:
    """What was made of `data`, with checksums and magic numbers that fit, so that what lies behind them is reached."""
    if changed.startswith(_PNG):
        return with_checksums(changed)
    if data.startswith(_PARQUET):
        # At its end stand the length of its schema and the magic number again.
        return _PARQUET + changed[4:-8] + data[-8:]
    return changed


def with_checksums(png: bytes) -> bytes:
    """A PNG file of which each chunk has the checksum of what it holds."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        if end + 4 > len(png):
            break
        parts += [png[at:end], zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join([*parts, png[at:]])


def _change(data: bytearray, random: Random) -> None:
    at = _place(data, random)
    match random.randrange(6):
        case 0 | 1 if data:
            data[at] ^= 1 << random.randrange(8)
        case 2:
            telling = random.choice(_TELLING)
            data[at : at + len(telling)] = telling
        case 3:
            del data[at if random.random() < 0.3 else max(at, len(data) - 16) :]
        case 4:
            chunk = data[at : at + random.choice((1, 4, 16, 256))]
            data[at:at] = chunk * random.choice((1, 2, 64))
        case _:
            del data[at : at + random.choice((1, 2, 8, 64))]


def _place(data: bytearray, random: Random) -> int:
    """Anywhere; but more often within a few bytes of the start, or of something that is structure."""
    if not data:
        return 0
    if random.random() < 0.3:
        return random.randrange(len(data))
    # The first directory of a TIFF file is where its header says, the schema of a Parquet file where its end says.
    starts = [0, max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little")) if data.startswith(_PARQUET) else 0]
    starts += [int.from_bytes(data[4:8], "little"), int.from_bytes(data[4:8], "big")]
    starts += [found.start() for found in _STRUCTURE.finditer(data)]
    return min(random.choice(starts) + int(random.expovariate(1 / 12)), len(data) - 1)
