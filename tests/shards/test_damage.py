"""Shards that are damaged, exchanged, or made to run code: each is refused by name, before its values are used."""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from lungseg_ray.corpus.record import MaskSource, Record
from lungseg_ray.errors import UserError
from lungseg_ray.shards.format import (
    SCHEMA,
    DamagedShardError,
    forget_open_shards,
    read_contents,
    read_pairs,
    read_rows,
    read_table,
    write_file,
)
from lungseg_ray.shards.index import INDEX, Shard, read_index, write_index
from lungseg_ray.storage import Location, locate
from lungseg_ray.storage.parquet import open_parquet
from tests.helpers import folder_of, make_sample, shard_of, write_shards

ROWS = 3


@pytest.fixture
def place(tmp_path: Path) -> Location:
    place = locate(str(tmp_path)) / "train-0.parquet"
    write_file(place, [(Record(f"{n}", f"{n}", (MaskSource("m"),), "p"), make_sample(f"{n}")) for n in range(ROWS)])
    return place


READS: dict[str, Callable[[Location, Shard], object]] = {
    "contents": lambda place, shard: read_contents(place),
    "table": lambda place, shard: read_table(folder_of(place), shard),
    "rows": lambda place, shard: read_rows(folder_of(place), shard, [0]),
    "pairs": lambda place, shard: read_pairs(folder_of(place), shard, [0]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("keep", [0, 100, -100, -1])
def test_cut(place: Location, read: Callable[[Location, Shard], object], keep: int) -> None:
    shard = shard_of(place)
    place.write_bytes(place.read_bytes()[:keep])
    with pytest.raises(
        DamagedShardError, match=r"train-0\.parquet: expected the shard that was written there, found: "
    ):
        read(place, shard)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_missing(place: Location, read: Callable[[Location, Shard], object]) -> None:
    shard = shard_of(place)
    place.delete()
    with pytest.raises(DamagedShardError, match="found: no such file"):
        read(place, shard)


@pytest.mark.parametrize("read", [READS["table"], READS["rows"], READS["pairs"]], ids=["table", "rows", "pairs"])
def test_exchanged_for_one_of_the_same_number_of_rows(
    place: Location, read: Callable[[Location, Shard], object]
) -> None:
    shard = shard_of(place)
    rows = [(Record(f"{n}", f"{n}", (MaskSource("m"),), "p"), make_sample(f"{n}")) for n in range(ROWS)]
    rows[1][1].image[3, 4] ^= 1
    write_file(place, rows)
    with pytest.raises(DamagedShardError, match=r"another shard than that of index\.json"):
        read(place, shard)


def test_every_flipped_bit_is_found(place: Location) -> None:
    shard, content = shard_of(place), place.read_bytes()
    right = [
        (row.image_id, row.sample.image.tobytes(), row.sample.mask.tobytes(), row.groups)
        for row in read_rows(folder_of(place), shard, range(ROWS))
    ]
    rng = np.random.default_rng(0)
    # The first bytes are the header of a page; the rest is spread over the file.
    places = [*range(64), *rng.integers(0, len(content), 400).tolist()]
    accepted = 0
    for at in places:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        place.write_bytes(bytes(damaged))
        # Files that are open stay so, with what they held.
        forget_open_shards()
        with suppress(DamagedShardError):
            pairs = read_pairs(folder_of(place), shard, range(ROWS))
            assert [one[:3] for one in right] == [
                (pair.image_id, pair.image.tobytes(), pair.mask.tobytes()) for pair in pairs
            ]
            accepted += 1
        with suppress(DamagedShardError):
            rows = read_rows(folder_of(place), shard, range(ROWS))
            assert right == [
                (row.image_id, row.sample.image.tobytes(), row.sample.mask.tobytes(), row.groups) for row in rows
            ]
            accepted += 1
    # Some bytes mean nothing.
    assert 0 < accepted < 0.2 * 2 * len(places)
    place.write_bytes(content)
    forget_open_shards()
    assert [pair.image_id for pair in read_pairs(folder_of(place), shard, range(ROWS))] == [one[0] for one in right]


class _Bomb:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("nested", [False, True])
def test_objects_are_not_unpickled(
    place: Location, read: Callable[[Location, Shard], object], nested: bool, tmp_path: Path
) -> None:
    """A shard whose schema declares a column as Ray's type for Python objects."""
    shard, witness = shard_of(place), tmp_path / "witness"
    table = pq.read_table(place.path)
    objects = pa.ExtensionArray.from_storage(
        ArrowPythonObjectType(), pa.array([pickle.dumps(_Bomb(witness))] * ROWS, pa.large_binary())
    )
    column = pa.StructArray.from_arrays([objects], ["inner"]) if nested else objects
    file = io.BytesIO()
    pq.write_table(table.set_column(SCHEMA.names.index("image_id"), "image_id", column), file)
    place.write_bytes(file.getvalue())
    # The file does what it says for those who read it without care.
    pq.read_table(place.path).column("image_id")[0].as_py()
    assert witness.exists()
    witness.unlink()
    with pytest.raises(DamagedShardError, match=r"extension types \(ray\.data\.arrow_pickled_object"):
        read(place, shard)
    assert not witness.exists()


def test_forged_schema(place: Location, tmp_path: Path) -> None:
    """Metadata that declare the type for the column of a shard as it is, written by hand."""
    witness, shard = tmp_path / "witness", shard_of(place)
    table = pq.read_table(place.path)
    fields = [field.with_type(ArrowPythonObjectType()) if field.name == "image" else field for field in table.schema]
    forged = base64.b64encode(pa.schema(fields).serialize().to_pybytes())
    payload = pa.array([pickle.dumps(_Bomb(witness))] * ROWS, pa.binary())
    table = table.set_column(SCHEMA.names.index("image"), "image", payload)
    file = io.BytesIO()
    with pq.ParquetWriter(file, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": forged.decode()})
    place.write_bytes(file.getvalue())
    for read in READS.values():
        with pytest.raises(DamagedShardError, match="extension types"):
            read(place, shard)
    assert not witness.exists()


def test_a_row_of_another_size_than_it_says(place: Location) -> None:
    table = pq.read_table(place.path)
    table = table.set_column(SCHEMA.names.index("height"), SCHEMA.field("height"), pa.array([1, -1, 99], pa.int32()))
    notes = pq.read_metadata(place.path).metadata
    with pq.ParquetWriter(place.path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key.decode(): value.decode() for key, value in notes.items()})
    with pytest.raises(DamagedShardError, match="other rows or notes"):
        read_contents(place)
    footer = hashlib.sha256(open_parquet(place)[1]).hexdigest()
    shard = Shard(file=place.name, split="train", rows=ROWS, footer=footer)
    for row in range(ROWS):
        with pytest.raises(DamagedShardError, match="whose image and mask have"):
            read_rows(folder_of(place), shard, [row])


@pytest.mark.parametrize(
    "change",
    [{"splits": {}}, {"shards": [Shard.model_construct(file="a", split="train", rows=10**12, footer="", skip=())]}],
)
def test_an_index_with_other_content(change: dict[str, Any], tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_index(root, write_shards(root, rows={"train": [2], "val": [1]}, skip={}).model_copy(update=change))
    with pytest.raises(UserError, match=r"index\.json: does not hold what it should"):
        read_index(root)


def test_every_flipped_bit_of_the_index_is_found(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    index, place = write_shards(root, rows={"train": [2, 1], "val": [1]}, skip={"train-0": (1,)}), root / INDEX
    content, rng, refused = place.read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(0, len(content), 400).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        place.write_bytes(bytes(damaged))
        try:
            # What differs in white space alone is the same.
            assert read_index(root) == index
        except UserError:
            refused += 1
    assert refused > 300
    place.write_bytes(content)
    assert read_index(root) == index
