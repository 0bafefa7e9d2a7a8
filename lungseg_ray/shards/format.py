"""The format of the Parquet shards: schema, index, one file written, rows read.

A row is one image with its mask, decoded: raw uint8 pixels that a reader unpacks without a codec of image files. That
costs about twice the disk of PNG and saves a hundred times the CPU of decoding it in every epoch. LZ4 compresses the
pixel columns; a row group holds about 1 MiB, so that any row can be had without reading its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.read import Sample
from lungseg_ray.corpus.record import Record, SetAside, Split
from lungseg_ray.errors import UserError
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.storage import Location, translate_errors

SCHEMA_VERSION = 2
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
    ],
    metadata={"lungseg_ray.schema": str(SCHEMA_VERSION)},
)
"""One image and its mask.

`image` is uint8, height x width x channels, row by row; `mask` is uint8, height x width, a label for each pixel, 255
where the pixel does not count. `spacing` is in mm per source pixel (row, column), null where the file does not say.
`intensity_mean` and `intensity_square` are the means of the pixel value, in 0 to 1, and of its square.
"""

PIXELS = ("image", "mask")
ROW_GROUP_BYTES = 1 << 20
INDEX = "index.json"
NOTES = b"lungseg_ray.notes"


class Shard(BaseModel):
    """One file of shards.

    Attributes:
        file: name within the folder.
        split: the side of the split that all its rows are on.
        rows: rows in the file.
        skip: numbers of rows that do not count, because another image of the corpus has the same bytes.
    """

    model_config = ConfigDict(frozen=True)
    file: str
    split: Split
    rows: int
    skip: tuple[int, ...] = ()

    @property
    def usable(self) -> list[int]:
        """Numbers of the rows that count."""
        return [row for row in range(self.rows) if row not in self.skip]


class Side(BaseModel):
    """One side of the split in figures.

    Attributes:
        images: how many.
        patients: whose.
        label_shares: share of the valid pixels, by label.
        intensity_mean: mean pixel value, 0 to 1.
        intensity_std: its standard deviation over all pixels.
    """

    images: int
    patients: int
    label_shares: dict[int, float]
    intensity_mean: float
    intensity_std: float


class ShardIndex(BaseModel):
    """What the folder of shards holds.

    Attributes:
        schema_version: of the rows.
        fingerprint: of what the rows hold; equal for equal images, masks and settings.
        source: of the listing and the settings that the shards were made from.
        layout: of the corpus.
        corpus: settings of the corpus.
        longer_side: limit of the stored size, pixels.
        sides: figures for each side of the split.
        shards: the files.
        set_aside: how many files were set aside, by reason.
    """

    schema_version: int
    fingerprint: str
    source: str
    layout: str
    corpus: CorpusSettings
    longer_side: int
    sides: dict[Split, Side]
    shards: list[Shard]
    set_aside: dict[str, int]

    def of(self, split: Split) -> list[Shard]:
        """The files of one side."""
        return [shard for shard in self.shards if shard.split == split]

    def count(self, split: Split) -> int:
        """Images of one side."""
        return self.sides[split].images


@dataclass(frozen=True)
class ShardRow:
    """An unpacked row: a sample, and whose it is."""

    image_id: str
    patient_id: str
    groups: dict[str, str]
    sample: Sample


def read_index(root: Location) -> ShardIndex:
    """Reads the index of a folder of shards.

    Raises:
        UserError: if there is none, or if another version of the software wrote it.
    """
    try:
        text = (root / INDEX).read_text()
    except FileNotFoundError:
        raise UserError(
            f"{root}: no {INDEX} there, so these are no finished shards. "
            f"Make them with: python jobs/shard.py --corpus.root DIR --shards.root {root}"
        ) from None
    try:
        content = json.loads(text)
        version = content["schema_version"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{root / INDEX}: cannot be read. Delete it, and make the shards again.") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{root / INDEX}: expected schema version {SCHEMA_VERSION}, found {version}. Make the shards again."
        )
    try:
        return ShardIndex.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{root / INDEX}: does not hold what it should: {error}. Make the shards again.") from None


def write_file(target: Location, rows: Sequence[tuple[Record, Sample]], set_aside: Sequence[SetAside] = ()) -> None:
    """Writes one shard, whole or not at all.

    Args:
        target: the file.
        rows: what it holds; may be empty.
        set_aside: files that were to be in this shard and cannot be used; kept in the metadata of the file.
    """
    notes = {"set_aside": [asdict(one) for one in set_aside]}
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), NOTES: json.dumps(notes).encode()})
    sink = pa.BufferOutputStream()
    dictionary = ["patient_id", "channels"]
    with pq.ParquetWriter(sink, schema, compression="lz4", use_dictionary=dictionary, write_statistics=False) as writer:
        waiting: list[dict[str, object]] = []
        held = 0
        for record, sample in rows:
            waiting.append(_pack(record, sample))
            held += sample.image.nbytes + sample.mask.nbytes
            if held >= ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting, held = [], 0
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
    target.write_bytes(sink.getvalue())


def read_notes(shard: Location) -> list[SetAside]:
    """Returns the files that were to be in a shard and cannot be used."""
    with translate_errors(shard):
        metadata = pq.read_schema(shard.path, filesystem=shard.filesystem).metadata
    return [SetAside(**one) for one in json.loads(metadata[NOTES])["set_aside"]]


def read_facts(shard: Location) -> pa.Table:
    """All columns but the pixels, of all rows."""
    columns = [name for name in SCHEMA.names if name not in PIXELS]
    with translate_errors(shard):
        return pq.read_table(shard.path, filesystem=shard.filesystem, columns=columns)


def _pack(record: Record, sample: Sample) -> dict[str, object]:
    values = _counts(sample.image.reshape(-1, 1)) / sample.image.size
    scale = np.arange(256) / 255
    labels = _counts(sample.mask)
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
        "intensity_mean": float(values @ scale),
        "intensity_square": float(values @ scale**2),
        "label_pixels": [(int(label), int(labels[label])) for label in np.flatnonzero(labels) if label != IGNORE_LABEL],
    }


def _counts(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """How many of (H, W) pixels have each value from 0 to 255."""
    return cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().astype(np.float64)


@lru_cache(maxsize=64)
def _open(uri: str) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
    location = Location(uri)
    file = pq.ParquetFile(location.path, filesystem=location.filesystem, memory_map=location.is_local)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return file, np.cumsum([0, *groups])


def read_rows(shard: Location, rows: Sequence[int]) -> list[ShardRow]:
    """Unpacks rows of one shard, in the order asked for; each row group is read once.

    Args:
        shard: the file.
        rows: row numbers within it.
    """
    with translate_errors(shard):
        return _read_rows(shard, rows)


def _read_rows(shard: Location, rows: Sequence[int]) -> list[ShardRow]:
    file, starts = _open(shard.uri)
    unpacked: dict[int, ShardRow] = {}
    groups = np.searchsorted(starts, np.asarray(rows), side="right") - 1
    for group in np.unique(groups):
        table = file.read_row_group(int(group), use_threads=False)
        for row in {row for row, of in zip(rows, groups, strict=True) if of == group}:
            unpacked[row] = _unpack(table.slice(row - starts[group], 1))
    return [unpacked[row] for row in rows]


def read_table(shard: Location) -> pa.Table:
    """A whole shard, for `unpack_rows`."""
    with translate_errors(shard):
        return pq.read_table(shard.path, filesystem=shard.filesystem).combine_chunks()


def unpack_rows(table: pa.Table, rows: Sequence[int]) -> list[ShardRow]:
    """Rows of a whole shard in memory, in the order asked for; pixels are not copied."""
    return [_unpack(table.slice(row, 1)) for row in rows]


def _unpack(table: pa.Table) -> ShardRow:
    pixels = {name: np.frombuffer(table.column(name)[0].as_buffer(), np.uint8) for name in PIXELS}
    row = table.drop_columns(list(PIXELS)).to_pylist(maps_as_pydicts="strict")[0]
    height, width = row["height"], row["width"]
    return ShardRow(
        image_id=row["image_id"],
        patient_id=row["patient_id"],
        groups=row["groups"],
        sample=Sample(
            image=pixels["image"].reshape(height, width, row["channels"]),
            mask=pixels["mask"].reshape(height, width),
            source_height=row["source_height"],
            source_width=row["source_width"],
            source_bits=row["source_bits"],
            spacing=tuple(row["spacing"]) if row["spacing"] else None,
            image_sha256=row["image_sha256"],
            mask_sha256=row["mask_sha256"],
        ),
    )
