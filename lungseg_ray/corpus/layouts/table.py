"""Reads CSV and Parquet files of users: every value becomes text, and every fault becomes a `UserError`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from lungseg_ray.corpus.record import SPLITS, Split
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import named, shown

TABLES = (".csv", ".parquet")
PATIENT_COLUMNS = ("patient_id", "patient")
MOST_BYTES = 1 << 30
"""The maximum size of a table, bytes. Larger tables are not read."""
MOST_ROWS = 10_000_000
"""The maximum number of rows of a Parquet file, which can declare in a few bytes that a value repeats 1e9 times."""

# The size of an image is read from its pixels. As groups, these columns would have one value per image.
_NO_GROUPS = ("width", "height")
_ARROW_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"ARROW:absent"

TableRow = Mapping[str, str]


@dataclass(frozen=True)
class UserTable:
    """The content of a table.

    Attributes:
        place: The file of the table.
        columns: The names of the columns, each once.
        rows: The values by column name, as text, because the patient 007 is not the number 7; "" for a missing value.
    """

    place: Location
    columns: list[str]
    rows: list[TableRow]


def is_table(place: Location) -> bool:
    """Returns whether a file has the suffix of a table."""
    return place.name.lower().endswith(TABLES)


def read_table(place: Location) -> UserTable:
    """Reads a CSV file in UTF-8 or a Parquet file of plain columns.

    Args:
        place: The file; it is read as Parquet if its suffix is .parquet, else as CSV.

    Returns:
        The table, with values stripped of white space.

    Raises:
        UserError: If the file is neither, if it is too large, or if two columns share a name.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    size = place.info().size or 0
    if size > MOST_BYTES:
        raise UserError(f"{place}: expected a table of at most {MOST_BYTES >> 20} MiB, found {size >> 20} MiB.")
    data = place.read_bytes()
    columns, rows = _of_parquet(place, data) if place.name.lower().endswith(".parquet") else _of_csv(place, data)
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{place}: expected each column once, found {named(twice)} more than once. Rename one of them.")
    return UserTable(place, columns, rows)


def first(row: TableRow, columns: Iterable[str]) -> str:
    """Returns the value in the first of the columns that has one, or ""."""
    return next((row[column] for column in columns if row.get(column)), "")


def check_once(place: Location, ids: Sequence[str], numbers: Sequence[int]) -> None:
    """Checks that no two rows name the same image.

    Args:
        place: The table, for the message.
        ids: The image id of each row.
        numbers: The number of each row, counted from 1 after the header.

    Raises:
        UserError: If two rows name the same image.
    """
    image_id, count = Counter(ids).most_common(1)[0] if ids else ("", 0)
    if count > 1:
        these = [number for one, number in zip(ids, numbers, strict=True) if one == image_id]
        rows = f"rows {these[0]} and {these[1]} after the header both name"
        if count > 2:
            rows = f"{count} rows, of which {these[0]} and {these[1]} after the header are the first, all name"
        raise UserError(f"{place}: {rows} {shown(image_id)}; expected one.")


def split_of(row: TableRow, place: Location | None, number: int) -> Split | None:
    """Returns the split that a row names.

    Args:
        row: The row. "valid" and "validation" stand for "val", and case is ignored.
        place: The table, for the message; None if there is none.
        number: The number of the row, counted from 1 after the header, for the message.

    Returns:
        The split; None if the row names none.

    Raises:
        UserError: If the row names an unknown split.
    """
    written = row.get("split", "")
    wanted = {"valid": "val", "validation": "val"}.get(written.lower(), written.lower())
    for split in SPLITS:
        if wanted == split:
            return split
    if written:
        raise UserError(
            f"{place}: row {number} after the header has the split '{shown(written)}'; "
            f"expected {', '.join(SPLITS)} or nothing."
        )
    return None


def groups_of(row: TableRow, known: Iterable[str]) -> dict[str, str]:
    """Returns the groups of a row, which are its further columns that are not empty.

    Args:
        row: The row.
        known: The columns that are not groups, in addition to those of the patient, the split and the image size.

    Returns:
        The values by column name.
    """
    without = {*known, *PATIENT_COLUMNS, *_NO_GROUPS, "split"}
    return {name: value for name, value in row.items() if name not in without and value}


def _of_csv(place: Location, data: bytes) -> tuple[list[str], list[TableRow]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: expected a CSV file in UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[TableRow] = []
    try:
        columns = list(reader.fieldnames or [])
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise UserError(
                    f"{place}: row {number} after the header has more values than the header has columns "
                    f"({named(columns)}). Put quotes around values that hold a comma."
                )
            rows.append({name: (value or "").strip() for name, value in row.items()})
    except csv.Error as error:
        raise UserError(
            f"{place}: row {len(rows) + 1} after the header cannot be read as CSV ({error}). Look there for a quote "
            "that is not closed."
        ) from error
    return columns, rows


def _of_parquet(place: Location, data: bytes) -> tuple[list[str], list[TableRow]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(_plain(data)))
        rows = file.metadata.num_rows
        if rows > MOST_ROWS:
            raise UserError(f"{place}: expected at most {MOST_ROWS} rows, found {rows}.")
        for column in file.schema_arrow:
            if pa.types.is_nested(column.type) or _is_bytes(column.type):
                raise UserError(
                    f"{place}: the column {shown(column.name)} is {shown(str(column.type))}; expected text, numbers "
                    "or dates. Convert it, or leave it out."
                )
        # One thread is enough for a table. With several, a damaged file could leave a thread waiting.
        table = file.read(use_threads=False)
        table.validate(full=True)
        names = list(table.column_names)
        columns = [["" if value is None else str(value).strip() for value in one.to_pylist()] for one in table.columns]
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, LookupError, MemoryError) as error:
        raise UserError(f"{place}: expected a Parquet file: {shown(str(error), 240)}") from error
    # Two columns of the same name become one here, but `read_table` rejects them.
    return names, [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _plain(data: bytes) -> bytes:
    """Returns the file without the schema that Arrow adds."""
    # The schema may name extension types, and some that Ray registers unpickle data from the file. Without the schema,
    # every column has the plain type that Parquet itself defines.
    footer = int.from_bytes(data[-8:-4], "little") + 8
    return data[:-footer] + data[-footer:].replace(_ARROW_SCHEMA, _NO_SCHEMA)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
