"""Reads the tables of users: every value becomes text, columns are found by their names, and every fault is said."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zipfile import ZipFile

import openpyxl
import pyarrow as pa

from lungseg_ray.corpus.layouts.patients import AUTO, NONE
from lungseg_ray.corpus.layouts.roles import read_words
from lungseg_ray.corpus.record import SPLITS, Split
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.storage.parquet import ExtensionTypeError, open_parquet
from lungseg_ray.text import named, shown

_MOSTLY_SPLITS = 0.8
"""A column counts as that of the split if this share of its values are words of splits."""
_MOST_WORDS = 1000
"""More ways than this to write the names of splits are not expected in one column."""
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".xlsx")
MOST_BYTES = 1 << 30
"""The maximum size of a table, bytes. Larger tables are not read."""
MOST_ROWS = 10_000_000
"""The maximum number of rows of a table. A Parquet file can declare in a few bytes that a value repeats 1e9 times."""
MOST_COLUMNS = 2000
"""The maximum number of columns of a table."""
MOST_CELLS = 1 << 27
"""The maximum number of cells of a table, rows times columns."""

# The size of an image is read from its pixels. As groups, these columns would have one value per image.
_NO_GROUPS = {"width", "height"}
_CHECKED = 100_000
_MERGED = re.compile(rb'<mergeCell ref="[A-Z]+(\d+):[A-Z]+(\d+)"')
_FORMULA = re.compile(rb"<f[^>]*(?:/>|>[^<]*</f>)\s*(?:<v\s*/>|<v>\s*</v>|</c>)")
_SEPARATORS = ",;\t|"

Column = Literal["image", "mask", "patient", "split"]
USUAL: Mapping[Column, Sequence[str]] = {
    "image": (
        *("image_uri", "image", "img", "image_path", "img_path", "image_file", "image_filename", "image_file_name"),
        *("image_name", "image_index", "image_id", "path", "file_path", "file", "filename", "file_name", "dicom"),
        *("dicom_path", "dicom_file", "xray", "xray_path", "x_ray", "picture", "input", "stem", "name"),
    ),
    "mask": (
        *("mask_uri", "mask", "masks", "mask_path", "mask_file", "mask_filename", "mask_name", "segmentation"),
        *("segmentation_path", "seg", "seg_path", "label", "label_path", "annotation", "annotation_path", "target"),
        *("ground_truth", "gt", "gt_path"),
    ),
    "patient": (
        *("patient_id", "patient", "patientid", "patient_key", "patient_no", "patient_number", "subject_id", "subject"),
        *("person_id", "person", "participant_id", "participant", "pid", "pat_id", "mrn", "patient_name", "case_id"),
    ),
    "split": ("split", "dataset_split", "subset", "partition", "set", "phase", "usage"),
}
"""The usual names of the columns, the most telling first. Capitals, blanks and other signs do not matter."""
TableRow = Mapping[str, str]


@dataclass(frozen=True)
class UserTable:
    """The content of a table.

    Attributes:
        place: The file of the table.
        columns: The names of the columns, each once.
        rows: The values by column name, as text, because the patient 007 is not the number 7; "" for a missing value.
        note: How the file was read, where that is not obvious, as a clause; empty if it is.
    """

    place: Location
    columns: list[str]
    rows: list[TableRow]
    note: str = ""

    def find(self, column: Column, given: Mapping[Column, str]) -> str | None:
        """Finds the column of a meaning, by the name that the user gives it, or else by its usual names.

        Args:
            column: The meaning.
            given: The names that the user gives to columns, by meaning (`corpus.columns`).

        Returns:
            The name of the column; None if there is none.

        Raises:
            UserError: If the user names a column that the table does not have, or if several have the same name but for
                capitals and signs.
        """
        if column in given:
            if given[column] not in self.columns:
                raise UserError(
                    f"{self.place}: corpus.columns names {shown(given[column])} for {column}, found the columns "
                    f"{named(self.columns)}."
                )
            return given[column]
        by_name = {plain(name): name for name in reversed(self.columns)}
        found = [by_name[plain(usual)] for usual in USUAL[column] if plain(usual) in by_name]
        if column == "split":
            # Columns named "set" or "phase" often hold something else, and others are named in other languages.
            alike = [name for name in self.columns if self.has_splits(name)]
            found = [name for name in found if plain(name) == "split"] + alike
        if not found:
            return None
        alike = [name for name in self.columns if plain(name) == plain(found[0])]
        if len(alike) > 1:
            raise UserError(
                f"{self.place}: the columns {named(alike)} have names of the same meaning. Say which one to read, as "
                f"with --corpus.columns '{json.dumps({column: alike[0]})}', or rename one of them."
            )
        return found[0]

    def has_splits(self, column: str) -> bool:
        """Returns whether nearly all values of a column are words of splits, and one of them is to train."""
        counts = Counter(row[column] for row in self.rows if row[column])
        if len(counts) > _MOST_WORDS + (1 - _MOSTLY_SPLITS) * counts.total():
            return False
        splits = {value: split_word(value) for value in counts}
        known = sum(count for value, count in counts.items() if splits[value] is not None)
        return "train" in splits.values() and known >= _MOSTLY_SPLITS * counts.total()


def patient_column(table: UserTable, setting: str) -> str | None:
    """Returns the column that the setting `corpus.patients` names; None if it names none, as a pattern does.

    Args:
        table: The table.
        setting: The setting. Capitals and signs do not matter.
    """
    by_name = {plain(name): name for name in reversed(table.columns)}
    if setting in (AUTO, NONE):
        return None
    return setting if setting in table.columns else by_name.get(plain(setting)) if plain(setting) else None


def plain(name: str) -> str:
    """Returns the name of a column as it is compared: letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_table(place: Location) -> bool:
    """Returns whether a file has the suffix of a table."""
    return place.name.lower().endswith(TABLES)


def read_table(place: Location) -> UserTable:
    """Reads a CSV file with any of the usual separators, which may be compressed (.gz), an Excel workbook, or a Parquet
    file of plain columns.

    Text is UTF-8, or UTF-16 with a byte order mark.

    Args:
        place: The file; its suffix determines how it is read.

    Returns:
        The table, with values and names of columns stripped of white space.

    Raises:
        UserError: If the file is none of these, if it is too large, or if two columns share a name.
        OSError: If a disk, or a bucket (`StorageError`), cannot be read.
    """
    size = place.info().size or 0
    if size > MOST_BYTES:
        raise UserError(f"{place}: expected a table of at most {MOST_BYTES >> 20} MiB, found {size >> 20} MiB.")
    data, name = place.read_bytes(), place.name.lower()
    note = ""
    if name.endswith(".parquet"):
        columns, rows = _of_parquet(place, data)
    elif name.endswith(".xlsx"):
        columns, rows = _of_excel(place, data)
    else:
        columns, rows, note = _of_csv(place, _inflated(place, data) if name.endswith(".gz") else data)
    if "" in columns:
        # A program that numbers rows writes a column without a name, and one that pads them several.
        _refuse_nameless(place, rows)
        columns = [name for name in columns if name]
        rows = [{name: value for name, value in row.items() if name} for row in rows]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{place}: expected each column once, found {named(twice)} more than once. Rename one of them.")
    return UserTable(place, columns, rows, note)


def _refuse_nameless(place: Location, rows: Sequence[TableRow]) -> None:
    """Raises a `UserError` if a column without a name has values, but for the numbers of the rows."""
    values = [row.get("", "") for row in rows]
    counts = [str(number) for number in range(len(rows) + 1)]
    if any(values) and values not in (counts[:-1], counts[1:]):
        first = next(value for value in values if value)
        raise UserError(
            f"{place}: a column has values, such as {shown(first)}, and no name above them. Name it, or remove it."
        )


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


def split_of(row: TableRow, column: str | None, place: Location, number: int) -> Split | None:
    """Returns the split that a row names.

    Args:
        row: The row. Words such as "training", "valid" or "dev" stand for the splits; capitals do not matter.
        column: The column of splits; None if the table has none.
        place: The table, for the message.
        number: The number of the row, counted from 1 after the header, for the message.

    Returns:
        The split; None if the row names none.

    Raises:
        UserError: If the row names an unknown split.
    """
    written = row.get(column, "") if column else ""
    if written and split_word(written) is None:
        raise UserError(
            f"{place}: row {number} after the header has the split '{shown(written)}' in the column "
            f"{shown(column or '')}; expected {', '.join(SPLITS)} or nothing."
        )
    return split_word(written) if written else None


def split_word(text: str) -> Split | None:
    """Returns the split that a text says, such as "Training", "hold-out" or "Test set"; None if it says none."""
    words = read_words(text)
    return words.split if not words.others else None


def groups_of(row: TableRow, known: Iterable[str | None]) -> dict[str, str]:
    """Returns the groups of a row, which are its further columns that are not empty.

    Args:
        row: The row.
        known: The columns that are not groups, in addition to those of the image size.

    Returns:
        The values by column name.
    """
    without = {*known}
    return {name: value for name, value in row.items() if value and name not in without and name not in _NO_GROUPS}


def _inflated(place: Location, data: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place}: expected a file that gzip compressed, found another or a damaged one.") from error
    if len(text) > MOST_BYTES:
        raise UserError(f"{place}: expected a table of at most {MOST_BYTES >> 20} MiB, found more in the .gz file.")
    return text


def _of_csv(place: Location, data: bytes) -> tuple[list[str], list[TableRow], str]:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    latin = False
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # Excel saves tables in the encoding of the system, which has no control characters.
        text = data.decode("cp1252", errors="replace")
        latin = encoding != "utf-16" and all(character.isprintable() or character.isspace() for character in text)
        if not latin or "\ufffd" in text:
            raise UserError(
                f"{place}: expected a CSV file in {'UTF-16' if encoding == 'utf-16' else 'UTF-8'}: {error}"
            ) from error
    head = text[: 1 << 16].splitlines()[:20]
    if head and "\0" in head[0]:
        raise UserError(
            f"{place}: expected a CSV file in UTF-8, or in UTF-16 with a byte order mark, found zero bytes in its "
            "first line. Save it as UTF-8."
        )
    separator = _separator(head)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[TableRow] = []
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        _check_extent(place, text.count("\n"), len(columns))
        reader.fieldnames = columns
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise UserError(
                    f"{place}: row {number} after the header has more values than the header has columns "
                    f"({named(columns)}). Put quotes around values that hold a {_NAMES[separator]}."
                )
            rows.append({name: (value or "").strip() for name, value in row.items()})
            if number % _CHECKED == 0:
                _check_extent(place, number, len(columns))
    except csv.Error as error:
        raise UserError(
            f"{place}: row {len(rows) + 1} after the header cannot be read as CSV ({error}). Look there for a quote "
            "that is not closed."
        ) from error
    said = [*(["UTF-16"] if encoding == "utf-16" else []), *([f"{_NAMES[separator]}s"] if separator != "," else [])]
    return columns, rows, f"with {' and '.join(said)}" if said else ""


_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


def _separator(lines: Sequence[str]) -> str:
    """Returns the separator that stands equally often in the first lines, and most often in the header."""
    counts = {sign: [line.count(sign) for line in lines if line.strip()] for sign in _SEPARATORS}
    even = [sign for sign, found in counts.items() if found and found[0] and len({*found}) == 1]
    there = even or [sign for sign, found in counts.items() if found and found[0]]
    return max(there, key=lambda sign: counts[sign][0], default=",")


def _of_excel(place: Location, data: bytes) -> tuple[list[str], list[TableRow]]:
    """Reads the first sheet of a workbook."""
    try:
        with ZipFile(io.BytesIO(data)) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MOST_BYTES:
            raise UserError(
                f"{place}: expected a table of at most {MOST_BYTES >> 20} MiB, found {size >> 20} MiB in it."
            )
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            lines = []
            for line in sheet.iter_rows(values_only=True):
                lines.append([_cell(value) for value in line])
                _check_extent(place, len(lines), len(line))
        finally:
            book.close()
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # A damaged workbook raises whatever zip files, XML and openpyxl can raise.
        raise UserError(f"{place}: expected an Excel workbook (.xlsx): {shown(str(error), 240)}") from error
    # A title may stand above the names of the columns.
    wide = [sum(map(bool, line)) > 1 for line in lines]
    header = wide.index(True) if True in wide else 0
    lines = lines[header:]
    columns = lines[0] if lines else []
    while columns and not columns[-1]:
        columns.pop()
    for number, cells in enumerate(lines[1:], start=1):
        if any(cells[len(columns) :]):
            raise UserError(
                f"{place}: row {number} after the header has more values than the header has columns "
                f"({named(columns)})."
            )
    if hidden := _hidden_cells(data, header + 1):
        raise UserError(f"{place}: {hidden}. Save the table as values, with one cell for each row and column.")
    rows = [dict(zip(columns, [*line, *[""] * len(columns)], strict=False)) for line in lines[1:] if any(line)]
    return columns, list(rows)


def _hidden_cells(data: bytes, header: int) -> str:
    """Returns what cells of the first sheet lack: values of merged ones, and of formulas that were never computed."""
    with ZipFile(io.BytesIO(data)) as parts:
        sheet = next((name for name in parts.namelist() if name.endswith("worksheets/sheet1.xml")), "")
        text = parts.read(sheet) if sheet else b""
    for match in _MERGED.finditer(text):
        if int(match[2]) > header and match[1] != match[2]:
            return f"cells of the rows {int(match[1])} to {int(match[2])} of the sheet are merged into one"
    if _FORMULA.search(text):
        return "there are formulas whose values were never computed"
    return ""


def _check_extent(place: Location, rows: int, columns: int) -> None:
    """Raises a `UserError` if a table has more rows, columns or cells than are read; a few bytes can declare many."""
    for what, found, most in (
        ("rows", rows, MOST_ROWS),
        ("columns", columns, MOST_COLUMNS),
        ("cells", rows * columns, MOST_CELLS),
    ):
        if found > most:
            raise UserError(f"{place}: expected at most {most} {what}, found {found}.")


def _cell(value: object) -> str:
    # Excel stores 7 as 7.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _of_parquet(place: Location, data: bytes) -> tuple[list[str], list[TableRow]]:
    try:
        file, _ = open_parquet(data, keep_dictionaries=True)
        _check_extent(place, file.metadata.num_rows, file.metadata.num_columns)
        for column in file.schema_arrow:
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if pa.types.is_nested(kind) or _is_bytes(kind):
                raise UserError(
                    f"{place}: the column {shown(column.name)} is {shown(str(kind))}; expected text, numbers "
                    "or dates. Convert it, or leave it out."
                )
        # One thread is enough for a table. With several, a damaged file could leave a thread waiting.
        table = file.read(use_threads=False)
        table.validate(full=True)
        names = list(table.column_names)
        columns = [_texts(one) for one in table.columns]
    except ExtensionTypeError as error:
        raise UserError(
            f"{place}: found {error}. Convert them to text, numbers or dates, or leave them out."
        ) from error
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, LookupError, MemoryError) as error:
        raise UserError(f"{place}: expected a Parquet file: {shown(str(error), 240)}") from error
    # Two columns of the same name become one here, but `read_table` rejects them.
    return names, [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _texts(column: pa.ChunkedArray) -> list[str]:
    found: list[str] = []
    for chunk in column.chunks:
        known = chunk.dictionary if isinstance(chunk, pa.DictionaryArray) else chunk
        texts = ["" if value is None else str(value).strip() for value in known.to_pylist()]
        if isinstance(chunk, pa.DictionaryArray):
            texts = ["" if place is None else texts[place] for place in chunk.indices.to_pylist()]
        found += texts
    return found


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
