from __future__ import annotations

import json
import os
import shutil
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.layouts.tree import SUFFIXES, entries_of
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.storage import locate, location
from tests.corpus import trees
from tests.corpus.trees import fill, listing, nobody, open_folder, reasons
from tests.helpers import DATA


class TestPairs:
    def test_matched_by_stem_in_order(self, tmp_path: Path) -> None:
        fill(
            tmp_path,
            "images/b.JPG",
            "images/a.jpeg",
            "images/deep/a.png",
            "masks/a.png",
            "masks/b.png",
            "masks/deep/a.png",
        )
        found = listing(tmp_path)
        assert (found.layout, found.because) == ("pairs", "found images/ and masks/")
        assert [item.image_id for item in found.records] == ["a", "b", "deep/a"]
        first = found.records[0]
        assert first.image_uri == str(tmp_path / "images/a.jpeg")
        assert first.mask_uris == (str(tmp_path / "masks/a.png"),)
        assert (first.patient_id, first.split, dict(first.groups)) == ("a", None, {})
        assert found.set_aside == []

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/b.png", "images/c.png", "images/c.jpg", "masks/c.png", "images/ok.png")
        fill(tmp_path, "masks/ok.png", "images/d.png", "masks/d.png", "masks/d.jpg")
        found = listing(tmp_path)
        assert [item.image_id for item in found.records] == ["ok"]
        assert reasons(found) == {"a": "no_mask", "b": "no_image", "c": "ambiguous", "d": "ambiguous"}
        assert "images/c.jpg, images/c.png" in found.set_aside[2].detail

    def test_other_files_are_counted(self, tmp_path: Path) -> None:
        fill(
            tmp_path,
            "images/a.png",
            "masks/a.png",
            "images/notes.txt",
            "images/.hidden.png",
            "masks/Thumbs.db",
            "README",
        )
        found = listing(tmp_path)
        assert [item.image_id for item in found.records] == ["a"]
        # What systems and programs leave is no part of the corpus.
        assert found.ignored == 1
        assert found.recognition[0] == "left out: 2 files that systems and programs leave (hidden, thumbnails)"

    def test_index(self, tmp_path: Path) -> None:
        fill(
            tmp_path,
            "images/001.png",
            "masks/001.png",
            "images/2.png",
            "masks/2.png",
            "images/x/3.png",
            "masks/x/3.png",
        )
        (tmp_path / "index.csv").write_text(
            "stem,patient,split,finding,width,height\n001,007,Validation,normal,10,20\nx/3,007,val,,10,20\ngone,8,,,,\n"
        )
        found = listing(tmp_path)
        by_id = {item.image_id: item for item in found.records}
        assert (by_id["001"].patient_id, by_id["001"].split) == ("007", "val")
        assert dict(by_id["001"].groups) == {"finding": "normal"}
        assert (by_id["x/3"].patient_id, dict(by_id["x/3"].groups)) == ("007", {})
        assert (by_id["2"].patient_id, by_id["2"].split) == ("2", None)
        assert reasons(found) == {"gone": "no_image"}
        assert "row 3" in found.set_aside[0].detail

    def test_parquet_index(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        pq.write_table(pa.table({"image_id": ["a"], "patient_id": [7], "site": ["north"]}), tmp_path / "index.parquet")
        record = listing(tmp_path).records[0]
        assert (record.patient_id, dict(record.groups)) == ("7", {"site": "north"})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name,patient\nq,1\n", "expected a column stem .* found name, patient"),
            ("stem,split\na,third\n", "row 1 .*'third' in the column split; expected train, val, test"),
            ("stem\na\na\n", "rows 1 and 2 .* both name a"),
            ("stem,patient\n,1\n", "row 1 .* has no stem"),
            ("stem,patient\na,Doe, John\n", "row 1 .* more values"),
        ],
    )
    def test_wrong_index(self, tmp_path: Path, text: str, message: str) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        (tmp_path / "index.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            listing(tmp_path)

    def test_every_suffix(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"images/{n}{suffix}" for n, suffix in enumerate(SUFFIXES)))
        fill(tmp_path, *(f"masks/{n}{suffix.upper()}" for n, suffix in enumerate(SUFFIXES)))
        found = listing(tmp_path, layout="pairs")
        assert len(found.records) == len(SUFFIXES) == 21
        assert (found.set_aside, found.ignored, found.because) == ([], 0, "")

    def test_mask_scale(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        assert listing(tmp_path, mask_scale=0.5).records[0].mask_scales == (0.5,)

    def test_long_id_in_the_index(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        (tmp_path / "index.csv").write_text(f"stem\n{'x' * 100_000}\n")
        (aside,) = listing(tmp_path).set_aside
        assert len(aside.image_id) < 200
        assert len(aside.detail) < 500
        (tmp_path / "index.csv").write_text(f"stem\n{'x' * 100_000}\n{'x' * 100_000}\n")
        with pytest.raises(UserError, match=r"both name x+\.\.\. \(100000 characters\)") as caught:
            listing(tmp_path)
        assert len(str(caught.value)) < 500

    def test_missing_folders(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no such folder"):
            listing(tmp_path / "missing", layout="pairs")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=r"found nothing; expected images and masks"):
            listing(tmp_path / "empty", layout="pairs")
        with pytest.raises(UserError, match=r"1 \.txt in images/, 1 \.png in masks/\. Of these, 1 file may be masks"):
            listing(fill(tmp_path / "other", "images/a.txt", "masks/a.png"))


class TestNames:
    def test_not_utf_8(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        bad = [b"images/\xff.png", b"masks/\xff.png", b"images/\xe4/c.png", b"images/\xff.txt", b"notes/\xff.png"]
        for name in bad:
            fill(tmp_path, os.fsdecode(name))
        found = listing(tmp_path)
        assert [record.image_id for record in found.records] == ["a"]
        assert [(one.image_id, one.reason) for one in found.set_aside] == [
            ("\\xe4/c", "bad_name"),
            ("\\xff", "bad_name"),
            ("\\xff", "bad_name"),
        ]
        assert found.set_aside[0].uri == f"{tmp_path}/images/\\xe4/c.png"
        json.dumps({**asdict(found), "corpus": None}, ensure_ascii=False).encode()

    def test_not_utf_8_in_a_public_set(self, tmp_path: Path) -> None:
        trees.shenzhen(tmp_path, count=2)
        fill(tmp_path, os.fsdecode(b"ChinaSet_AllFiles/CXR_png/CHNCXR_0001_\xff.png"))
        assert reasons(listing(tmp_path)) == {"ChinaSet_AllFiles/CXR_png/CHNCXR_0001_\\xff": "bad_name"}

    def test_nothing_but_bad_names(self, tmp_path: Path) -> None:
        fill(tmp_path, os.fsdecode(b"images/\xff.png"), "masks/a.png")
        with pytest.raises(UserError, match=r"1 \.png in images/, 1 \.png in masks/") as caught:
            listing(tmp_path)
        assert str(caught.value).replace("\n", "").isprintable()

    @pytest.mark.parametrize("name", ["a b", "a,b", 'a"b', "肺", "é", "e\u0301", "a\nb", "a\\b", "a.b.c", "n" * 251])
    def test_odd_and_good(self, name: str, tmp_path: Path) -> None:
        fill(tmp_path, f"images/{name}.png", f"masks/{name}.png")
        assert [record.image_id for record in listing(tmp_path).records] == [name]

    def test_circles(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png", "images/deep/b.png", "masks/deep/b.png")
        (tmp_path / "images/circle").symlink_to("..")
        (tmp_path / "images/deep/circle").symlink_to(".")
        (tmp_path / "masks/deep/circle").symlink_to(tmp_path / "masks")
        found = listing(tmp_path)
        assert ([record.image_id for record in found.records], found.set_aside) == (["a", "deep/b"], [])

    def test_links_are_followed(self, tmp_path: Path) -> None:
        fill(tmp_path / "elsewhere", "i/a.png", "m/a.png")
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus/images").symlink_to("../elsewhere/i")
        (tmp_path / "corpus/masks").symlink_to("../elsewhere/m")
        assert [record.image_id for record in listing(tmp_path / "corpus").records] == ["a"]

    def test_links_to_nothing_are_read_later(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png", "masks/b.png", "masks/c.png")
        (tmp_path / "images/b.png").symlink_to("b.png")
        (tmp_path / "images/c.png").symlink_to("gone")
        found = listing(tmp_path)
        assert [record.image_id for record in found.records] == ["a", "b", "c"]
        with pytest.raises(BadFileError) as caught:
            read_sample(found.records[1], CorpusSettings(root=str(tmp_path)), longer_side=64)
        assert caught.value.reason == "unreadable"

    @pytest.mark.timeout(60)
    def test_pipes_are_not_opened(self, tmp_path: Path) -> None:
        fill(tmp_path / "pairs", "images/a.png", "masks/a.png")
        for name in ("images/b.png", "index.csv"):
            os.mkfifo(tmp_path / "pairs" / name)
        assert reasons(listing(tmp_path / "pairs")) == {"b": "unreadable"}
        trees.montgomery(tmp_path / "public", count=2)
        (reading, _) = (tmp_path / "public/MontgomerySet/ClinicalReadings").iterdir()
        reading.unlink()
        os.mkfifo(reading)
        found = listing(tmp_path / "public")
        assert sorted(len(record.groups) for record in found.records) == [1, 3]

    def test_closed_folder(self) -> None:
        with open_folder() as root:
            fill(root, "images/a.png", "masks/a.png", "images/closed/b.png")
            (root / "images/closed").chmod(0)
            with (
                nobody(),
                pytest.raises(UserError, match=r"images/closed: this folder cannot be listed \(Permission den"),
            ):
                listing(root)
            (root / "images/closed").chmod(0o755)

    def test_deeper_than_paths_may_be_long(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png")
        name = "d" * 200
        with chdir(tmp_path / "images"):
            for _ in range(30):
                Path(name).mkdir()
                os.chdir(name)
        with pytest.raises(
            UserError, match=r"characters\): this folder cannot be listed \(File name too long\)"
        ) as caught:
            listing(tmp_path)
        assert len(str(caught.value)) < 600
        shutil.rmtree(tmp_path / "images")


class TestAuto:
    def test_nothing_fits(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"missing: there is no such folder"):
            listing(tmp_path / "missing")
        with pytest.raises(
            UserError, match=r"found 1 \.png in here/, 1 \.png in there/\. Of these, 2 images"
        ) as caught:
            listing(fill(tmp_path / "other", "here/a.png", "there/a.png"))
        lines = str(caught.value).splitlines()
        assert [line.split(":")[0].strip() for line in lines[2:-1]] == [
            "manifest",
            "pairs",
            "dicom",
            "montgomery",
            "shenzhen",
            "jsrt",
        ]

    def test_much_is_found(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"1 \.png in 000/, .* 1 \.png in 005/ and files in 44 more places"):
            listing(fill(tmp_path, *(f"{n:03d}/a.png" for n in range(50))))

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        with pytest.raises(UserError, match=r"a\.png: expected a folder, found a file"):
            listing(tmp_path / "a.png")

    def test_whoever_names_a_folder_images_means_it(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/CXR_png/CHNCXR_0001_0.png", "masks/CXR_png/CHNCXR_0001_0.png")
        assert listing(tmp_path).layout == "pairs"

    def test_dicom_and_pictures(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.dcm", "images/b.png", "masks/a.png", "masks/b.png")
        with pytest.raises(UserError, match=r"several layouts fit: pairs \(.*\); dicom \(.*\)"):
            listing(tmp_path)
        assert len(listing(tmp_path, layout="pairs").records) == 2


def test_whole_trees_are_found_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket has files and no folders."""
    monkeypatch.setattr(location, "SCHEMES", ("mock",))
    root = locate("mock://bucket/public")
    for path in ("CXR_png/MCUCXR_0001_0.png", "leftMask/MCUCXR_0001_0.png", "rightMask/MCUCXR_0001_0.png"):
        (root / path).filesystem.create_dir((root / path).path.rsplit("/", 1)[0])
        (root / path).write_bytes(b"123")
    (root / "ClinicalReadings").filesystem.create_dir((root / "ClinicalReadings").path)
    (root / "ClinicalReadings/MCUCXR_0001_0.txt").write_text("Patient's Sex: F\nPatient's Age: 027Y\n")
    found = list_corpus(CorpusSettings(root="mock://bucket/public"))
    assert found.layout == "montgomery"
    assert dict(found.records[0].groups) == {"sex": "female", "age": "20-29", "finding": "normal"}


def test_phantom() -> None:
    found = list_corpus(CorpusSettings.model_validate({"phantom": {"count": 3}}))
    assert found.layout == "phantom"
    assert len(found.records) == 3


@pytest.mark.parametrize(("name", "count", "patients"), [("cxr-lungs", 215, None), ("wbc", 300, 300)])
def test_real_corpora(name: str, count: int, patients: int | None) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"needs the corpus {DATA / name}")
    found = listing(DATA / name)
    assert len(found.records) == count
    assert found.set_aside == []
    of = {item.patient_id for item in found.records}
    assert len(of) == patients if patients else len(of) < count


def test_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "SCHEMES", ("mock",))
    # pyarrow's file system in memory stands for one that is not local.
    root = locate("mock://bucket/prefix")
    for file in ("images/a.png", "masks/a.png"):
        place = root / file
        place.filesystem.create_dir(place.path.rsplit("/", 1)[0])
        place.write_bytes(b"12345")
    (root / "index.csv").write_text("stem,patient\na,7\n")
    record = list_corpus(CorpusSettings(root="mock://bucket/prefix")).records[0]
    assert record.image_uri == "mock://bucket/prefix/images/a.png"
    assert record.patient_id == "7"


class TestState:
    """The state of a record changes with each of its files, on every store."""

    @pytest.mark.parametrize("changed", ["images/a.png", "masks/a.png"])
    @pytest.mark.parametrize("root", ["", "list.csv"])
    def test_file_of_the_same_size_that_is_older(self, changed: str, root: str, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/a.png", "images/b.png", "masks/b.png")
        rows = "".join(f"images/{name}.png,masks/{name}.png\n" for name in "ab")
        (tmp_path / "list.csv").write_text(f"image,mask\n{rows}")
        before = {record.image_id: record.state for record in listing(tmp_path / root).records}
        os.utime(tmp_path / changed, (1, 1))
        after = {record.image_id: record.state for record in listing(tmp_path / root).records}
        assert after["a"] != before["a"]
        assert after["b"] == before["b"]

    def test_files_in_a_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(location, "SCHEMES", ("mock",))
        root = locate("mock://states/c")
        root.filesystem.create_dir(root.path)
        places = [root / f"{number}.png" for number in range(60)]
        for place in places:
            place.write_bytes(place.name.encode())
        found = entries_of([*places, root / "absent.png", root])
        assert {uri: entry.size for uri, entry in found.items()} == {place.uri: len(place.name) for place in places}
