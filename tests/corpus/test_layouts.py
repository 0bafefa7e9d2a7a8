from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungseg_ray import storage
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.record import REASONS
from lungseg_ray.errors import UserError
from lungseg_ray.storage import locate

DATA = Path(__file__).parents[2] / "../shared/data"


def listing(root: Path, **settings: object) -> Listing:
    return list_corpus(CorpusSettings.model_validate({"root": str(root), **settings}))


def fill(root: Path, *files: str) -> Path:
    """Files of as many bytes as their path has letters; listing never opens them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x" * len(file))
    return root


def reasons(found: Listing) -> dict[str, str]:
    assert {item.reason for item in found.set_aside} <= REASONS.keys()
    return {item.image_id: item.reason for item in found.set_aside}


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
        assert found.layout == "pairs"
        assert [item.image_id for item in found.records] == ["a", "b", "deep/a"]
        first = found.records[0]
        assert first.image_uri == str(tmp_path / "images/a.jpeg")
        assert first.mask_uri == str(tmp_path / "masks/a.png")
        assert (first.patient_id, first.split, dict(first.groups)) == ("a", None, {})
        # len("images/a.jpeg") + len("masks/a.png")
        assert first.size == 13 + 11
        newest = max((tmp_path / file).stat().st_mtime_ns for file in ("images/a.jpeg", "masks/a.png"))
        assert first.modified_ns == newest
        assert found.set_aside == []

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/a.png", "masks/b.png", "images/c.png", "images/c.jpg", "masks/c.png", "images/ok.png")
        fill(tmp_path, "masks/ok.png", "images/d.png", "masks/d.png", "masks/d.jpg")
        found = listing(tmp_path)
        assert [item.image_id for item in found.records] == ["ok"]
        assert reasons(found) == {"a": "no_mask", "b": "no_image", "c": "ambiguous", "d": "ambiguous"}
        assert "c.jpg, c.png" in found.set_aside[2].detail

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
        assert found.ignored == 3

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
            ("name,patient\na,1\n", "expected a column stem .* found name, patient"),
            ("stem,split\na,training\n", "row 1 .*'training'; expected train, val, test"),
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

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"images/ and masks/.*found nothing"):
            listing(tmp_path / "missing")
        with pytest.raises(UserError, match="found labels, pictures"):
            listing(fill(tmp_path / "other", "pictures/a.png", "labels/a.png"))
        with pytest.raises(UserError, match=r"expected images \(.png, .jpg, .jpeg\)"):
            listing(fill(tmp_path / "dicom", "images/a.dcm", "masks/a.png"))


class TestManifest:
    def test_csv(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(
            "image_uri,mask_uri,patient_id,split,sex\n"
            "x/a.png,m/a.png,01,valid,f\n"
            "y/b.png,/abs/b.png,,,\n"
            "z/b.png,file:///abs/c.png,02,test,m\n"
            "c.png,,03,,\n"
        )
        found = listing(tmp_path / "list.csv")
        assert found.layout == "manifest"
        assert [item.image_id for item in found.records] == ["a", "y/b", "z/b"]
        a, yb, zb = found.records
        assert (a.image_uri, a.mask_uri) == (str(tmp_path / "x/a.png"), str(tmp_path / "m/a.png"))
        assert (a.patient_id, a.split, dict(a.groups)) == ("01", "val", {"sex": "f"})
        assert (yb.patient_id, yb.split, yb.mask_uri, dict(yb.groups)) == ("y/b", None, "/abs/b.png", {})
        assert zb.mask_uri == "/abs/c.png"
        assert reasons(found) == {"c": "no_mask"}

    def test_parquet_without_optional_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image_uri": ["b.png", "a.png"], "mask_uri": ["m.png", None]}), tmp_path / "l.parquet")
        found = listing(tmp_path / "l.parquet", layout="manifest")
        assert [(item.image_id, item.patient_id) for item in found.records] == [("b", "b")]
        assert reasons(found) == {"a": "no_mask"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,mask_uri\na,b\n", "found image, mask_uri; image_uri is missing"),
            ("image_uri;mask_uri\na;b\n", "found image_uri;mask_uri; image_uri, mask_uri is missing"),
            ("image_uri,mask_uri,split\na.png,b.png,\nc.png,d.png,dev\n", "row 2 .*'dev'; expected train, val, test"),
            ("image_uri,mask_uri\na.png,b.png\na.png,c.png\n", "rows 1 and 2 .* both name a"),
            ("image_uri,mask_uri\n,b.png\n", "row 1 .* no image_uri"),
            ("image_uri,mask_uri\n", "found none"),
        ],
    )
    def test_wrong_manifest(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            listing(tmp_path / "list.csv")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such file"):
            listing(tmp_path / "list.csv")
        with pytest.raises(UserError, match=r"expects a \.csv or \.parquet"):
            listing(tmp_path, layout="manifest")

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "l.parquet").write_text("image_uri")
        with pytest.raises(UserError, match="expected a Parquet file"):
            listing(tmp_path / "l.parquet")


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
    monkeypatch.setattr(storage, "SCHEMES", ("mock",))
    # pyarrow's file system in memory stands for one that is not local.
    root = locate("mock://bucket/prefix")
    for file in ("images/a.png", "masks/a.png"):
        place = root / file
        place.filesystem.create_dir(place.path.rsplit("/", 1)[0])
        place.write_bytes(b"12345")
    (root / "index.csv").write_text("stem,patient\na,7\n")
    record = list_corpus(CorpusSettings(root="mock://bucket/prefix")).records[0]
    assert record.image_uri == "mock://bucket/prefix/images/a.png"
    assert (record.patient_id, record.size) == ("7", 10)
