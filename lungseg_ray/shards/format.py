"""The format of the Parquet shards: their schema, and functions to write and read them.

A row is one image with its mask. It contains raw uint8 pixels, which are read without decoding an image file. This
takes about twice the disk space of PNG, and about a hundredth of the CPU time of decoding PNG in every epoch. The
columns are compressed with LZ4. A row group is one row, or as many small ones as make 256 KiB of pixels, so that a row
can be read without its neighbours. Each page has a CRC-32, and the index knows the footer of each file: what is read is
what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lungseg_ray.corpus.record import Record, Sample, SetAside
from lungseg_ray.errors import JobFailedError
from lungseg_ray.imaging import count_labels
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.shards.index import INDEX, SCHEMA_VERSION, SUM, Shard, json_sum
from lungseg_ray.storage import Location, StorageError, translate_errors
from lungseg_ray.storage.parquet import open_parquet
from lungseg_ray.text import shown

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("groups", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("source_height", pa.int32(), nullable=False),
        pa.field("source_width", pa.int32(), nullable=False),
        pa.field("source_bits", pa.int32(), nullable=False),
        pa.field("spacing", pa.list_(pa.float64())),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("mask_sha256", pa.string(), nullable=False),
        pa.field("intensity_mean", pa.float64(), nullable=False),
        pa.field("intensity_square", pa.float64(), nullable=False),
        pa.field("label_pixels", pa.map_(pa.int32(), pa.int64()), nullable=False),
    ]
)
"""The columns of a row, which is one image with its mask.

`image` is uint8, (height, width, channels) in C order. `mask` is uint8, (height, width) in C order: the label of each
pixel, or 255 (`IGNORE_LABEL`) for pixels that are left out. `spacing` is the pixel spacing in the source file, mm (row,
column); null if the file does not specify it. `intensity_mean` and `intensity_square` are the means over all pixels of
the pixel value, scaled to 0 to 1, and of its square. `label_pixels` is the number of pixels of each label, without
`IGNORE_LABEL`. The columns that start with `source_` describe the image in its file, before it was reduced; the others
are as in `Record` and `Sample`.
"""

PIXELS = ("image", "mask")
PAIR = ("image_id", "height", "width", "channels", *PIXELS)
"""The columns that training needs."""
ROW_GROUP_BYTES = 1 << 18
NOTES = b"lungseg_ray.notes"

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Pair:
    """The image and the mask of a row, which is all that training needs of it.

    Attributes:
        image_id: The id of the image, unique in the corpus.
        image: uint8 (height, width, channels).
        mask: uint8 (height, width), the label of each pixel; `IGNORE_LABEL` for pixels that are left out.
    """

    image_id: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ShardRow:
    """An unpacked row: a sample with its metadata.

    Attributes:
        image_id: The id of the image, unique in the corpus.
        patient_id: The id of the patient.
        groups: Further columns of the corpus, by name.
        sample: The image with its mask.
    """

    image_id: str
    patient_id: str
    groups: dict[str, str]
    sample: Sample


def write_file(
    target: Location,
    rows: Sequence[tuple[Record, Sample]],
    set_aside: Sequence[SetAside] = (),
    checks: Sequence[Mapping[str, Any]] = (),
) -> Contents:
    """Writes one shard, atomically.

    Args:
        target: The file to write.
        rows: The record and the sample of each row; may be empty.
        set_aside: The files that were planned for this shard and cannot be used. They are kept in the metadata of the
            file.
        checks: What `lungseg_ray.shards.checks` keeps of the rows, as JSON can hold it; it is kept there, too.

    Returns:
        What the shard contains, as `read_contents` would return it.

    Raises:
        OSError: If the file cannot be written; a `StorageError` for a bucket.
    """
    notes: dict[str, Any] = {
        "set_aside": [asdict(one) for one in set_aside],
        "checks": list(checks),
    }
    sink = pa.BufferOutputStream()
    dictionary = ["patient_id", "channels"]
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="lz4",
        use_dictionary=dictionary,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        waiting: list[dict[str, object]] = []
        facts: list[dict[str, Any]] = []
        held = 0
        for record, sample in rows:
            waiting.append(_pack(record, sample))
            held += sample.image.nbytes + sample.mask.nbytes
            if held >= ROW_GROUP_BYTES or len(facts) + len(waiting) == len(rows):
                table = pa.Table.from_pylist(waiting, schema=SCHEMA)
                writer.write_table(table)
                facts += table.drop_columns(list(PIXELS)).to_pylist(maps_as_pydicts="strict")
                waiting, held = [], 0
        # These contain the hashes of the source files and the mean intensities, so that they stand for the pixels.
        notes["facts"] = json_sum(facts)
        text = json.dumps({**notes, SUM: json_sum(notes)})
        writer.add_key_value_metadata({"lungseg_ray.schema": str(SCHEMA_VERSION), NOTES.decode(): text})
    data = sink.getvalue()
    target.write_bytes(data)
    return Contents(facts, list(set_aside), list(checks), hashlib.sha256(open_parquet(data)[1]).hexdigest())


class DamagedShardError(JobFailedError):
    """A shard that is missing, damaged, or another one than its index describes."""


@contextmanager
def _reading(place: Location) -> Iterator[None]:
    """Converts what is raised about a shard that cannot be used to a `DamagedShardError` that names it."""
    try:
        with translate_errors(place):
            yield
    except FileNotFoundError:
        raise DamagedShardError(_damaged(place, "no such file")) from None
    except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedShardError(_damaged(place, shown(str(error), 240))) from error
    except OSError as error:
        # Arrow raises these without a number of the system's for content that cannot be decoded.
        if isinstance(error, StorageError) or error.errno is not None:
            raise
        raise DamagedShardError(_damaged(place, shown(str(error), 240))) from error


def _damaged(place: Location, found: str) -> str:
    return (
        f"{place}: expected the shard that was written there, found: {found}. Delete the file if it is there, and make "
        "the shards again: python jobs/shard.py with the same settings makes only what is missing."
    )


@dataclass(frozen=True)
class Contents:
    """What a shard contains beside its pixels.

    Attributes:
        rows: All columns but the pixels of all rows.
        set_aside: The files that were planned for the shard and cannot be used.
        checks: What `lungseg_ray.shards.checks` keeps of the rows.
        footer: The SHA-256 of the footer, hexadecimal, as in `Shard`.
    """

    rows: list[dict[str, Any]]
    set_aside: list[SetAside]
    checks: list[Mapping[str, Any]]
    footer: str

    def to_json(self) -> str:
        """Returns the contents as a JSON text."""
        rows = [{**row, "label_pixels": list(row["label_pixels"].items())} for row in self.rows]
        set_aside = [asdict(one) for one in self.set_aside]
        return json.dumps({"rows": rows, "set_aside": set_aside, "checks": self.checks, "footer": self.footer})

    @classmethod
    def from_json(cls, text: str) -> Contents:
        """Builds the contents from the text that `to_json` returns."""
        fields = json.loads(text)
        rows = [{**row, "label_pixels": dict(row["label_pixels"])} for row in fields["rows"]]
        set_aside = [SetAside(**one) for one in fields["set_aside"]]
        return cls(rows, set_aside, fields["checks"], fields["footer"])


def read_contents(place: Location) -> Contents:
    """Reads what a shard contains beside its pixels.

    Args:
        place: The file of the shard.

    Raises:
        DamagedShardError: If the file is missing, damaged, or no shard.
        OSError: If the file cannot be read; a `StorageError` for a bucket.
    """
    with _reading(place):
        file, footer = _open_shard(place)
        notes = json.loads(file.metadata.metadata[NOTES])
        columns = [name for name in SCHEMA.names if name not in PIXELS]
        rows = file.read(columns, use_threads=False).to_pylist(maps_as_pydicts="strict")
        if notes.pop(SUM) != json_sum(notes) or notes["facts"] != json_sum(rows):
            raise DamagedShardError(_damaged(place, "other rows or notes than when it was written"))
        return Contents(
            rows,
            [SetAside(**one) for one in notes["set_aside"]],
            notes["checks"],
            footer,
        )


def _open_shard(place: Location) -> tuple[pq.ParquetFile, str]:
    file, footer = open_parquet(place)
    if not file.schema_arrow.equals(SCHEMA):
        raise pa.ArrowInvalid(f"the columns {', '.join(map(str, file.schema_arrow))}")
    return file, hashlib.sha256(footer).hexdigest()


def _pack(record: Record, sample: Sample) -> dict[str, object]:
    values = sample.image.reshape(-1, 1)
    return {
        "image_id": record.image_id,
        "patient_id": record.patient_id,
        "groups": list(record.groups.items()),
        "height": sample.image.shape[0],
        "width": sample.image.shape[1],
        "channels": sample.image.shape[2],
        "image": sample.image.tobytes(),
        "mask": sample.mask.tobytes(),
        "source_height": sample.source_height,
        "source_width": sample.source_width,
        "source_bits": sample.source_bits,
        "spacing": list(sample.spacing) if sample.spacing else None,
        "image_sha256": sample.image_sha256,
        "mask_sha256": sample.mask_sha256,
        "intensity_mean": cv2.mean(values)[0] / 255,
        "intensity_square": cv2.norm(values, cv2.NORM_L2SQR) / values.size / 255**2,
        "label_pixels": [(label, count) for label, count in count_labels(sample.mask).items() if label != IGNORE_LABEL],
    }


@lru_cache(maxsize=128)
def _open_indexed(place: Location, footer: str) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
    """Opens a shard whose footer an index describes; returns it with the number of the first row of each row group."""
    file, found = _open_shard(place)
    if found != footer:
        raise pa.ArrowInvalid(f"another shard than that of {INDEX} (SHA-256 of the footer {found}, expected {footer})")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return file, np.cumsum([0, *groups])


def forget_open_shards() -> None:
    """Closes the shards that this process keeps open, as is needed after one of them was replaced."""
    _open_indexed.cache_clear()


def read_rows(root: Location, shard: Shard, rows: Sequence[int]) -> list[ShardRow]:
    """Reads rows of one shard. Each row group is read only once.

    Args:
        root: The folder of the shards.
        shard: The shard, as its index describes it.
        rows: The numbers of the rows within the shard, in any order.

    Returns:
        The rows, in the order of the numbers.

    Raises:
        DamagedShardError: If the file is missing, damaged, or another one than the index describes.
        OSError: If the file cannot be read; a `StorageError` for a bucket.
    """
    return _read(root, shard, rows, SCHEMA.names, _unpack_row)


def read_pairs(root: Location, shard: Shard, rows: Sequence[int]) -> list[Pair]:
    """Reads images and masks as `read_rows` does, in half of its time, since the other columns are not read."""
    return _read(root, shard, rows, PAIR, _unpack_pair)


def _read(
    root: Location, shard: Shard, rows: Sequence[int], columns: Sequence[str], unpack: Callable[[pa.Table], _Row]
) -> list[_Row]:
    place = root / shard.file
    with _reading(place):
        file, starts = _open_indexed(place, shard.footer)
        unpacked: dict[int, _Row] = {}
        groups = np.searchsorted(starts, np.asarray(rows), side="right") - 1
        for group in np.unique(groups):
            table = file.read_row_group(int(group), columns=list(columns), use_threads=False)
            for row in {row for row, of in zip(rows, groups, strict=True) if of == group}:
                unpacked[row] = unpack(table.slice(row - starts[group], 1))
        return [unpacked[row] for row in rows]


def read_table(root: Location, shard: Shard) -> pa.Table:
    """Reads the images and masks of a whole shard as one table, for `unpack_pairs`.

    Args:
        root: The folder of the shards.
        shard: The shard, as its index describes it.

    Raises:
        DamagedShardError: If the file is missing, damaged, or another one than the index describes.
        OSError: If the file cannot be read; a `StorageError` for a bucket.
    """
    place = root / shard.file
    with _reading(place):
        return _open_indexed(place, shard.footer)[0].read(list(PAIR), use_threads=False).combine_chunks()


def unpack_pairs(table: pa.Table, rows: Sequence[int]) -> list[Pair]:
    """Unpacks rows of a shard that is in memory. The pixels are not copied: the arrays use the table's memory.

    Args:
        table: The whole shard, as `read_table` returns it.
        rows: The numbers of the rows within the shard, in any order.

    Returns:
        The rows, in the order of the numbers.
    """
    return [_unpack_pair(table.slice(row, 1)) for row in rows]


def _unpack_pair(table: pa.Table) -> Pair:
    image, mask = (np.frombuffer(table.column(name)[0].as_buffer(), np.uint8) for name in PIXELS)
    height, width, channels = (table.column(name)[0].as_py() for name in ("height", "width", "channels"))
    if min(height, width, channels) < 1 or (image.size, mask.size) != (height * width * channels, height * width):
        raise ValueError(
            f"a row of {height} x {width} x {channels} whose image and mask have {image.size} and {mask.size} bytes"
        )
    name = table.column("image_id")[0].as_py()
    return Pair(name, image.reshape(height, width, channels), mask.reshape(height, width))


def _unpack_row(table: pa.Table) -> ShardRow:
    pair = _unpack_pair(table)
    row = table.drop_columns(list(PAIR)).to_pylist(maps_as_pydicts="strict")[0]
    return ShardRow(
        image_id=pair.image_id,
        patient_id=row["patient_id"],
        groups=row["groups"],
        sample=Sample(
            image=pair.image,
            mask=pair.mask,
            source_height=row["source_height"],
            source_width=row["source_width"],
            source_bits=row["source_bits"],
            spacing=tuple(row["spacing"]) if row["spacing"] else None,
            image_sha256=row["image_sha256"],
            mask_sha256=row["mask_sha256"],
        ),
    )
