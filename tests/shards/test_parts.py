"""Parts of the training images, by patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.config import Settings
from lungseg_ray.feed.stream import Source
from lungseg_ray.shards.format import read_rows
from lungseg_ray.shards.index import read_index
from lungseg_ray.shards.parts import part_of, split_off
from lungseg_ray.storage import locate
from tests.helpers import make_settings, write_shards


def test_the_parts_are_all_images_and_share_no_patient(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_shards(root, rows={"train": [9, 7, 8], "val": [4], "test": [3]}, skip={})
    index = read_index(root)
    every: list[tuple[str, int]] = []
    owners: list[set[str]] = []
    for number in range(3):
        without, taken = split_off(root, index, f"{number}/3")
        patients = [read_rows(root, shard, [row])[0].patient_id for shard, row in taken]
        left = {read_rows(root, shard, [row])[0].patient_id for shard in without.of("train") for row in shard.usable}
        assert left.isdisjoint(patients)
        assert without.count("train") == sum(len(shard.usable) for shard in without.of("train"))
        assert without.count("train") + len(taken) == 24
        assert without.splits["train"].patients == len(left)
        assert (without.of("val"), without.of("test")) == (index.of("val"), index.of("test"))
        every += [(shard.file, row) for shard, row in taken]
        owners.append(set(patients))
    assert sorted(every) == sorted((shard.file, row) for shard in index.of("train") for row in shard.usable)
    assert all(len(one) for one in owners)


def test_a_patient_is_in_the_same_part_everywhere() -> None:
    assert [part_of(f"patient {number}", 4) for number in range(8)] == [2, 1, 2, 2, 1, 2, 1, 3]


def test_a_run_is_fed_without_its_part(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_shards(root, rows={"train": [9, 7, 8], "val": [4], "test": [3]}, skip={})
    index = read_index(root)
    settings = make_settings(shards={"root": str(tmp_path)}, feed={"leave_out": "1/3", "batch": 2})
    source = Source.of(settings, index)
    _, taken = split_off(root, index, "1/3")
    assert source.index.count("train") == 24 - len(taken)
    assert Source.of(make_settings(shards={"root": str(tmp_path)}), index).index is index


def test_folds_in_one_process_have_orders_of_their_own(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    write_shards(root, rows={"train": [9, 7, 8], "val": [4], "test": [3]}, skip={})
    index = read_index(root)
    for part in ("0/3", "1/3", "2/3"):
        settings = make_settings(shards={"root": str(tmp_path)}, feed={"leave_out": part, "batch": 2})
        source = Source.of(settings, index)
        _, taken = split_off(root, index, part)
        files = [shard.file for shard in source.index.of("train")]
        slots = np.arange(source.index.count("train"))
        drawn = {(files[shard], row) for shard, row in source.rows("train", 0, slots).places.tolist()}
        assert len(drawn) == len(slots)
        assert not drawn & {(shard.file, row) for shard, row in taken}


@pytest.mark.parametrize("wrong", ["4/4", "1", "a/b", "0/1", "-1/4", "0/4 "])
def test_what_is_no_part(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected a part such as 0/4, the first of four"):
        Settings.model_validate({"feed": {"leave_out": wrong}})
