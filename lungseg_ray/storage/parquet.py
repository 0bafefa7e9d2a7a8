"""Opens Parquet files so that nothing in them can run code, and checks the sums of their pages.

Arrow keeps its own schema in the metadata of a Parquet file. That schema may declare extension types, and some that Ray
registers in every process unpickle data of the file. The schema is therefore hidden from Arrow: columns have the plain
types that Parquet itself defines. A file whose schema declares extension types is refused.
"""

from __future__ import annotations

import base64
import binascii
import re

import pyarrow as pa
import pyarrow.parquet as pq

from lungseg_ray.storage.location import Location

_ARROW_SCHEMA, _HIDDEN = b"ARROW:schema", b"ARROW:hidden"
_EXTENSION = b"ARROW:extension:name"
_MAGIC, _TAIL = b"PAR1", 8
_USUAL_FOOTER = 1 << 17
_MOST_FOOTER = 1 << 28
"""The maximum size of the metadata of a file, bytes. Those of a file with a million row groups are smaller."""


class ExtensionTypeError(pa.ArrowInvalid):
    """The schema of a Parquet file declares extension types."""


def open_parquet(
    source: Location | bytes | pa.Buffer, *, keep_dictionaries: bool = False
) -> tuple[pq.ParquetFile, bytes]:
    """Opens a Parquet file.

    Args:
        source: The place of the file, or its content.
        keep_dictionaries: Whether texts are read as dictionaries with indices, so that one that a file repeats a
            million times is in memory only once.

    Returns:
        The file, whose columns have the types that Parquet defines, and the bytes of its footer. Pages are compared
        with their checksums when they are read, where they have some.

    Raises:
        ExtensionTypeError: If the schema that Arrow keeps in the file declares extension types.
        ArrowInvalid: If the file is damaged, or no Parquet file.
        OSError: If the file cannot be read.
    """
    stream = _open(source)
    footer = _read_footer(stream)
    plain = footer.replace(_ARROW_SCHEMA, _HIDDEN)
    alone = _MAGIC + plain + len(plain).to_bytes(4, "little") + _MAGIC
    metadata = pq.read_metadata(pa.BufferReader(alone))
    if found := _extension_types((metadata.metadata or {}).get(_HIDDEN, b"")):
        raise ExtensionTypeError(f"columns of extension types ({', '.join(found)}), which are not read")
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)] if keep_dictionaries else []
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    file = pq.ParquetFile(stream, metadata=metadata, page_checksum_verification=True, read_dictionary=texts)
    return file, footer


def _open(source: Location | bytes | pa.Buffer) -> pa.NativeFile:
    if isinstance(source, bytes | pa.Buffer):
        return pa.BufferReader(source)
    # A memory map would end the process where a disk fails, or where another process cuts the file short.
    return source.filesystem.open_input_file(source.path)


def _read_footer(stream: pa.NativeFile) -> bytes:
    size = stream.size()
    end = bytes(stream.read_at(min(size, _USUAL_FOOTER), max(size - _USUAL_FOOTER, 0)))
    length = int.from_bytes(end[-_TAIL:-4], "little")
    if len(end) < _TAIL or end[-4:] != _MAGIC:
        raise pa.ArrowInvalid("expected a Parquet file, which ends in PAR1")
    if length > min(size - _TAIL - len(_MAGIC), _MOST_FOOTER):
        raise pa.ArrowInvalid(f"expected metadata within the file's {size} bytes, found a length of {length}")
    if length + _TAIL > len(end):
        end = bytes(stream.read_at(length + _TAIL, size - _TAIL - length))
    return end[-_TAIL - length : -_TAIL]


def _extension_types(encoded: bytes) -> list[str]:
    """Returns the names of the extension types that a schema declares, or what stands for them."""
    try:
        schema = base64.b64decode(encoded)
    except binascii.Error:
        return []
    if _EXTENSION not in schema:
        return []
    names = {name.decode() for name in re.findall(rb"(?:ray|pandas|arrow)(?:\.[a-z_0-9]+)+", schema)}
    return sorted(names) or ["of another program"]
