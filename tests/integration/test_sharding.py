from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from lungseg_ray.errors import UserError
from lungseg_ray.shards.build import read_set_aside, shard
from lungseg_ray.shards.describe import Outcome
from lungseg_ray.shards.format import read_contents, read_rows
from tests.conftest import write_pairs
from tests.integration.conftest import settings_for


def read(place: Path) -> Any:
    return cv2.imread(str(place), cv2.IMREAD_GRAYSCALE)


def test_every_image_lies_in_one_shard_as_it_was(sharded: Outcome, corpus: Path) -> None:
    found = {}
    for one in sharded.index.shards:
        for row in read_rows(sharded.root, one, range(one.rows)):
            found[row.image_id] = row
    assert sorted(found) == [path.stem for path in sorted((corpus / "images").iterdir())]
    row = found["x007"]
    assert row.patient_id == "p3"
    assert row.groups == {"finding": "odd"}
    assert np.array_equal(row.sample.image[:, :, 0], read(corpus / "images/x007.png"))
    assert np.array_equal(row.sample.mask, read(corpus / "masks/x007.png") // 255)


def test_no_patient_stands_on_two_sides_and_the_index_counts_right(sharded: Outcome) -> None:
    splits: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for one in sharded.index.shards:
        facts = read_contents(sharded.root / one.file).rows
        counts[one.split] = counts.get(one.split, 0) + len(facts)
        for row in facts:
            splits.setdefault(row["patient_id"], set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())
    assert counts == {split: one.images for split, one in sharded.index.splits.items()}
    assert sum(one.patients for one in sharded.index.splits.values()) == 24


def test_the_same_input_again_is_up_to_date(sharded: Outcome, corpus: Path) -> None:
    again = shard(settings_for(corpus, Path(sharded.root.path)))
    assert not again.fresh
    assert again.index == sharded.index


def test_a_cut_job_keeps_what_it_has_and_makes_the_rest(sharded: Outcome, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded.root.path, tmp_path / "shards")
    (tmp_path / "shards/index.json").unlink()
    gone = next((tmp_path / "shards").glob("train-00001-*.parquet"))
    gone.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.parquet")}
    again = shard(settings_for(corpus, tmp_path / "shards"))
    assert again.fresh
    assert again.index.fingerprint == sharded.index.fingerprint
    assert gone.exists()
    (tmp_path / "shards/set_aside.csv").unlink()
    assert shard(settings_for(corpus, tmp_path / "shards")).set_aside == again.set_aside
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_bad_files_are_set_aside_with_their_reason(cluster: None, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs", 24)
    (root / "images/x001.png").write_bytes((root / "images/x001.png").read_bytes()[:500])
    (root / "images/x003.png").write_bytes(b"")
    (root / "masks/x005.png").unlink()
    cv2.imwrite(str(root / "masks/x007.png"), np.full((32, 64), 255, np.uint8))
    cv2.imwrite(str(root / "masks/x009.png"), np.zeros((64, 64), np.uint8))
    cv2.imwrite(str(root / "masks/x011.png"), np.full((64, 64), 77, np.uint8))
    shutil.copy(root / "images/x013.png", root / "images/x015.png")
    expected = {
        "x001": "unreadable",
        "x003": "empty_file",
        "x005": "no_mask",
        "x007": "size_mismatch",
        "x009": "empty_mask",
        "x011": "unknown_label",
        "x015": "duplicate",
    }
    with pytest.raises(UserError, match=r"7 of 24 files \(29\.2%\) cannot be used") as refused:
        shard(settings_for(root, tmp_path / "shards"))
    assert all(reason in str(refused.value) for reason in expected.values())
    assert not (tmp_path / "shards/index.json").exists()
    listed = tmp_path / "shards/refused.csv"
    assert str(refused.value).endswith(f"All of them are listed in {listed}")
    with listed.open() as table:
        assert {row["image_id"]: row["reason"] for row in csv.DictReader(table)} == expected
    outcome = shard(settings_for(root, tmp_path / "shards", shards={"max_set_aside": 0.5}))
    assert not listed.exists()
    assert {one.image_id: one.reason for one in outcome.set_aside} == expected
    assert read_set_aside(outcome.root) == outcome.set_aside
    assert sum(one.images for one in outcome.index.splits.values()) == 24 - 7
    assert sum(len(one.usable) for one in outcome.index.shards) == 24 - 7


def test_files_exchanged_for_others_of_the_same_size_and_time(cluster: None, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs", 16)
    for path in root.rglob("*.png"):
        # An uncompressed file of the same shape has the same size.
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    settings = settings_for(root, tmp_path / "shards")
    first = shard(settings)
    one, other = root / "images/x003.bmp", root / "images/x004.bmp"
    before = {path: path.stat().st_mtime_ns for path in (one, other)}
    # What is written anew with the same content is the same.
    other.write_bytes(content := other.read_bytes())
    os.utime(other, ns=(0, 0))
    os.utime(other, ns=(before[other], before[other]))
    assert not shard(settings).fresh
    one.write_bytes(content)
    os.utime(one, ns=(before[one], before[one]))
    with pytest.raises(UserError, match="files of x003 were exchanged for others of the same size and time"):
        shard(settings)
    again = shard(settings_for(root, tmp_path / "shards", shards={"replace": True, "max_set_aside": 0.5}))
    assert again.index.fingerprint != first.index.fingerprint
    assert not shard(settings_for(root, tmp_path / "shards", shards={"max_set_aside": 0.5})).fresh


def test_another_corpus_in_the_same_place_leaves_no_old_file(cluster: None, tmp_path: Path) -> None:
    first = shard(settings_for(write_pairs(tmp_path / "a", 16), tmp_path / "shards"))
    other = write_pairs(tmp_path / "b", 16, seed=1)
    before = {path: path.read_bytes() for path in (tmp_path / "shards").glob("*.parquet")}
    with pytest.raises(UserError, match=rf"other shards are there.*of the corpus {tmp_path}/a.*--shards.replace true"):
        shard(settings_for(other, tmp_path / "shards"))
    smaller = {"longer_side": first.index.longer_side // 2}
    with pytest.raises(UserError, match=r"a longer side of \d+ px, and \d+ px were asked for"):
        shard(settings_for(tmp_path / "a", tmp_path / "shards", shards=smaller))
    assert {path: path.read_bytes() for path in (tmp_path / "shards").glob("*.parquet")} == before
    second = shard(settings_for(other, tmp_path / "shards", shards={"replace": True}))
    assert first.index.fingerprint != second.index.fingerprint
    files = {path.name for path in (tmp_path / "shards").glob("*.parquet")}
    assert files == {one.file for one in second.index.shards}
    assert json.loads((tmp_path / "shards/index.json").read_text())["fingerprint"] == second.index.fingerprint
