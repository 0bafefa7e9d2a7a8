from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lungseg_ray.corpus.record import MaskSource, Record, Sample, SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.shards.format import SCHEMA, ShardRow, read_contents, read_pairs, read_rows, write_file
from lungseg_ray.shards.index import INDEX, SCHEMA_VERSION, Shard, json_sum, read_index
from lungseg_ray.storage import Location, locate
from tests.helpers import folder_of, make_sample, shard_of, write_shards


def record(name: str, **groups: str) -> Record:
    return Record(
        image_id=name, image_uri=name, masks=(MaskSource(name),), patient_id=f"patient of {name}", groups=groups
    )


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return locate(str(tmp_path)) / "train-0.parquet"


def rows_of(place: Location, rows: Sequence[int]) -> list[ShardRow]:
    return read_rows(folder_of(place), shard_of(place), rows)


# (height, width, channels): grey and colour, odd sizes, a single pixel.
SHAPES = [(40, 48, 1), (37, 53, 3), (1, 1, 1), (255, 3, 1), (64, 64, 3)]


def test_round_trip(place: Location) -> None:
    samples = [make_sample(str(shape), height=shape[0], width=shape[1], channels=shape[2]) for shape in SHAPES]
    samples[1] = Sample(samples[1].image, samples[1].mask, 2000, 2500, 12, (0.14, 0.15), "image sum", "mask sum")
    samples[0].mask[3:7, 5] = 255
    rows = [(record(f"é {number}", sex="F", age=str(number)), sample) for number, sample in enumerate(samples)]
    bad = SetAside("x", "/x.png", "unreadable", "ü")
    write_file(place, rows, [bad])

    found = rows_of(place, range(5))
    for number, (row, sample) in enumerate(zip(found, samples, strict=True)):
        assert (row.image_id, row.patient_id) == (f"é {number}", f"patient of é {number}")
        assert row.groups == {"sex": "F", "age": str(number)}
        assert row.sample.image.dtype == row.sample.mask.dtype == np.uint8
        assert row.sample.image.shape == SHAPES[number]
        np.testing.assert_array_equal(row.sample.image, sample.image)
        np.testing.assert_array_equal(row.sample.mask, sample.mask)
        assert (row.sample.image_sha256, row.sample.mask_sha256) == (sample.image_sha256, sample.mask_sha256)
    assert found[1].sample.spacing == (0.14, 0.15)
    assert (found[1].sample.source_height, found[1].sample.source_width) == (2000, 2500)
    assert found[0].sample.spacing is None
    assert (read_contents(place).set_aside, read_contents(place).checks) == ([bad], [])


def test_facts(place: Location) -> None:
    # 2 x 2 pixels: intensities 0, 0.2, 0.4 and 1, mean 0.4, mean square (0 + 0.04 + 0.16 + 1) / 4 = 0.3.
    image = np.array([[0, 51], [102, 255]], np.uint8)[:, :, None]
    mask = np.array([[0, 1], [1, 255]], np.uint8)
    write_file(place, [(record("a"), Sample(image, mask, 4, 6, 8, None, "i", "m"))])
    (row,) = read_contents(place).rows
    assert [*row] == [name for name in SCHEMA.names if name not in ("image", "mask")]
    assert row["intensity_mean"] == pytest.approx(0.4)
    assert row["intensity_square"] == pytest.approx(0.3)
    assert row["label_pixels"] == {0: 1, 1: 2}
    assert [row[key] for key in ("height", "width", "channels", "source_height", "source_width")] == [2, 2, 1, 4, 6]
    assert row["groups"] == {}


def test_large_rows_have_a_row_group_each(place: Location) -> None:
    rows = [(record(str(number)), make_sample(str(number), height=512, width=512)) for number in range(5)]
    write_file(place, rows)
    metadata = pq.read_metadata(place.path)
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [1] * 5
    assert metadata.row_group(0).column(SCHEMA.names.index("image")).compression == "LZ4"
    wanted = [4, 1, 1, 3, 0, 4]
    found = rows_of(place, wanted)
    assert [row.image_id for row in found] == [str(number) for number in wanted]
    for row, number in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(row.sample.image, rows[number][1].image)


def test_small_rows_share_a_row_group(place: Location) -> None:
    # An image of 256 x 256 and its mask are 128 KiB.
    rows = [(record(str(number)), make_sample(str(number), height=256, width=256)) for number in range(5)]
    write_file(place, rows)
    metadata = pq.read_metadata(place.path)
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [2, 2, 1]
    wanted = [3, 0, 4, 3]
    found = read_pairs(folder_of(place), shard_of(place), wanted)
    assert [pair.image_id for pair in found] == [str(number) for number in wanted]
    for pair, number in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(pair.image, rows[number][1].image)
        np.testing.assert_array_equal(pair.mask, rows[number][1].mask)


def test_schema_and_version_are_in_the_file(place: Location) -> None:
    write_file(place, [])
    schema = pq.read_schema(place.path)
    metadata = pq.read_metadata(place.path).metadata
    assert schema.names == SCHEMA.names
    assert schema.types == SCHEMA.types
    assert metadata[b"lungseg_ray.schema"] == str(SCHEMA_VERSION).encode()
    found = read_contents(place)
    assert (found.rows, found.set_aside, found.checks) == ([], [], [])


def test_skipped_rows_are_not_usable() -> None:
    shard = Shard(file="train-0.parquet", split="train", rows=5, footer="", skip=(0, 3))
    assert shard.usable == [1, 2, 4]
    assert Shard(file="x", split="val", rows=0, footer="").usable == []


def test_index_round_trip(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    index = write_shards(root, rows={"train": [3, 2], "val": [2]}, skip={"train-1": (1,)})
    found = read_index(root)
    assert found == index
    assert [shard.file for shard in found.of("train")] == ["train-0.parquet", "train-1.parquet"]
    assert (found.count("train"), found.count("val"), found.count("test")) == (4, 2, 0)
    assert found.of("test") == []


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}: no index.json there.*python jobs/shard.py"):
        read_index(locate(str(tmp_path)))


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, str(SCHEMA_VERSION)])
def test_index_of_another_version(version: object, tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_shards(root, rows={"train": [1]}, skip={})
    content = json.loads((root / INDEX).read_text())
    (root / INDEX).write_text(json.dumps({**content, "schema_version": version}))
    with pytest.raises(
        UserError, match=rf"index.json: expected schema version {SCHEMA_VERSION}, found {version}\. Make"
    ):
        read_index(root)


@pytest.mark.parametrize("name", ["../train-0.parquet", "/etc/passwd", "..", ""])
def test_a_name_that_leaves_the_folder(name: str, tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_shards(root, rows={"train": [1]}, skip={})
    content = json.loads((root / INDEX).read_text())
    content["shards"][0]["file"] = name
    del content["sha256"]
    (root / INDEX).write_text(json.dumps({**content, "sha256": json_sum(content)}))
    with pytest.raises(UserError, match="expected the name of a file in this folder"):
        read_index(root)
