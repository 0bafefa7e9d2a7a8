from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lungseg_ray.config import Settings, dump, load_settings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.errors import UserError
from lungseg_ray.shards.index import ShardIndex, write_index
from lungseg_ray.shards.reuse import changed_corpus, find_shards, with_shard_settings
from lungseg_ray.storage import Location, locate
from tests.corpus.trees import fill
from tests.helpers import write_shards


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "shards"))


@pytest.fixture
def colour(root: Location) -> ShardIndex:
    """Shards of RGB images, described by their corpus."""
    index = write_shards(root, rows={"train": [2]}, skip={})
    corpus = index.corpus.model_copy(update={"channels": 3, "about": "Cells.", "licence": "cc0"})
    index = index.model_copy(update={"corpus": corpus, "longer_side": 512})
    write_index(root, index)
    return index


def job(*arguments: str) -> Settings:
    return load_settings(Settings, arguments)


def test_no_shards_yet(root: Location) -> None:
    assert find_shards(root, job()) is None


def test_what_was_not_set_is_taken_from_the_shards(root: Location, colour: ShardIndex) -> None:
    found = find_shards(root, job())
    assert found == colour
    settings = with_shard_settings(job("--corpus.licence", "cc-by-4.0"), colour)
    assert (settings.corpus.channels, settings.shards.longer_side) == (3, 512)
    # Descriptions are those of the command, where it has some.
    assert (settings.corpus.about, settings.corpus.licence) == ("Cells.", "cc-by-4.0")


def test_a_default_that_was_asked_for_is_not_ignored(root: Location, colour: ShardIndex) -> None:
    with pytest.raises(UserError, match=r"otherwise than asked for:\n  corpus\.channels: 3 -> 1\n"):
        find_shards(root, job("--corpus.channels", "1"))
    with pytest.raises(UserError, match=r"shards\.longer_side: 512 -> 1024"):
        find_shards(root, job("--shards.longer_side", "1024"))


@pytest.fixture
def found_out(root: Location) -> ShardIndex:
    """Shards of a corpus whose white, threshold and values of masks were found out."""
    index = write_shards(root, rows={"train": [2]}, skip={})
    found = {"white": [4095.0, 65535.0], "mask_threshold": 0.25, "mask_values": {0: 0, 38: 1}, "mask_channel": "alpha"}
    index = index.model_copy(update={"corpus": index.corpus.model_copy(update=found)})
    write_index(root, index)
    return index


def test_what_was_found_out_is_taken_from_the_shards(root: Location, found_out: ShardIndex, tmp_path: Path) -> None:
    assert find_shards(root, job()) == found_out
    assert with_shard_settings(job(), found_out).corpus.mask_values == {0: 0, 38: 1}
    # A file with all settings names the defaults, too.
    (tmp_path / "all.yaml").write_text(dump(Settings()))
    corpus = ["--corpus.root", str(found_out.corpus.root)]
    settings = job("--config", str(tmp_path / "all.yaml"), "--shards.root", str(root), *corpus)
    assert find_shards(root, settings) == found_out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--corpus.mask_values", '{"0": 0}'], r"corpus\.mask_values: \{0: 0, 38: 1\} -> \{0: 0\}"),
        (["--corpus.mask_values", '{"0": 0, "38": 1, "40": 1}'], r"-> \{0: 0, 38: 1, 40: 1\}"),
        (["--corpus.white", "4095"], r"corpus\.white: \[4095\.0, 65535\.0\] -> 4095\.0"),
    ],
)
def test_what_was_found_out_cannot_be_asked_for_otherwise(
    root: Location, found_out: ShardIndex, arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        find_shards(root, job(*arguments))


def test_what_shapes_no_shard_may_be_asked_for(root: Location, colour: ShardIndex) -> None:
    asked = job("--corpus.channels", "3", "--corpus.about", "x", "--shards.rows", "7", "--shards.max_set_aside", "1")
    assert find_shards(root, asked) == colour


def test_files_behind_a_manifest_are_noticed(root: Location, tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", "a.png", "a_mask.png")
    (corpus / "list.csv").write_text("image,mask,patient\na.png,a_mask.png,1\n")
    settings = job("--corpus.root", str(corpus / "list.csv"), "--shards.root", str(root))
    index = write_shards(root, rows={"train": [2]}, skip={})
    index = index.model_copy(update={"files": [tuple(state) for state in list_corpus(settings.corpus).files]})
    assert changed_corpus(settings, index) == ""
    (corpus / "a_mask.png").write_bytes(b"drawn again")
    assert "has other files when the shards" in changed_corpus(settings, index)


def test_a_corpus_that_has_grown_is_noticed(root: Location, tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", "images/a.png", "masks/a.png")
    settings = job("--corpus.root", str(corpus), "--shards.root", str(root))
    index = write_shards(root, rows={"train": [2]}, skip={})
    index = index.model_copy(update={"files": [tuple(state) for state in list_corpus(settings.corpus).files]})
    assert changed_corpus(settings, index) == ""
    # What jobs write in the folder of the corpus is no part of it.
    within = job("--corpus.root", str(corpus), "--shards.root", f"{corpus}/out/shards", "--runs.root", f"{corpus}/runs")
    fill(corpus, "out/shards/pairs.png", "runs/a/curves.png")
    assert changed_corpus(within, index) == ""
    assert list_corpus(within.corpus, within.outputs).ignored == 0
    shutil.rmtree(corpus / "out")
    shutil.rmtree(corpus / "runs")
    # What the user does not name is not looked at.
    fill(corpus, "images/b.png", "masks/b.png")
    assert changed_corpus(job("--shards.root", str(root)), index) == ""
    assert f"The corpus {corpus} has 4 files, and had 2 when the shards" in changed_corpus(settings, index)
    for name in ("images/b.png", "masks/b.png"):
        (corpus / name).unlink()
    (corpus / "masks/a.png").write_bytes(b"drawn again")
    assert "has other files when the shards" in changed_corpus(settings, index)
    # Shards need no corpus.
    (corpus / "masks/a.png").unlink()
    (corpus / "images/a.png").unlink()
    for folder in ("images", "masks", ""):
        (corpus / folder).rmdir()
    assert changed_corpus(settings, index) == ""
