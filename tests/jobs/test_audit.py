from __future__ import annotations

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console

from lungseg_ray.audit.result import Audit
from lungseg_ray.config import Settings, ShardJob, SplitSettings, load_settings
from lungseg_ray.corpus.record import MaskSource, Record, Split
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.audit import assign_possible_splits, audit, audit_summary
from lungseg_ray.storage import Location
from tests.audit.helpers import altered, opened
from tests.conftest import write_pairs
from tests.helpers import DATA


class TestSides:
    def records(self, *of: tuple[str, Split | None]) -> list[Record]:
        return [
            Record(f"x{at}", f"/x{at}", (MaskSource("/m"),), patient, split) for at, (patient, split) in enumerate(of)
        ]

    def test_torn_patients_stay_where_they_are_put(self) -> None:
        given = self.records(("p", "train"), ("p", "val"), ("q", "test"), ("r", "train"), ("r", None))
        assigned, split_conflicts, unsplit_reason = assign_possible_splits(given, SplitSettings())
        assert split_conflicts == {"p": ["train", "val"]}
        assert {one.image_id: one.split for one in assigned} == {
            "x0": "train", "x1": "val", "x2": "test", "x3": "train", "x4": "train",
        }  # fmt: skip
        assert unsplit_reason == ""

    def test_too_few_patients(self) -> None:
        assigned, split_conflicts, unsplit_reason = assign_possible_splits(self.records(("p", None)), SplitSettings())
        assert (assigned[0].split, split_conflicts) == (None, {})
        assert unsplit_reason.startswith("Too few patients for the split")


class TestCommand:
    def test_flag(self) -> None:
        assert load_settings(ShardJob, ["--audit"]).audit
        assert not load_settings(ShardJob, []).audit
        assert load_settings(ShardJob, ["--audit", "--corpus.root", "/x"]).corpus.root == Location("/x")

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left:
            load_settings(ShardJob, ["--help"])
        assert left.value.code == 0
        assert re.search(r"--audit .*Audit the corpus", " ".join(capsys.readouterr().out.split()))


def audited(root: Path, out: Path, **corpus: Any) -> Audit:
    settings = Settings.model_validate({"corpus": {"root": str(root), **corpus}, "shards": {"root": str(out)}})
    found, page = audit(settings)
    assert page.uri == f"{out}/audit.html"
    text = io.StringIO()
    Console(file=text, width=200).print(audit_summary(found, page))
    assert f"Page: {out}/audit.html" in text.getvalue()
    return found


@pytest.mark.usefixtures("cluster")
class TestAudit:
    def test_planted_troubles(self, tmp_path: Path) -> None:
        root = write_pairs(tmp_path / "corpus", 12, size=128)
        images, masks = root / "images", root / "masks"
        (images / "x001.png").write_bytes((images / "x000.png").read_bytes())
        cv2.imwrite(str(images / "x006.png"), altered(opened(images / "x004.png"), "gamma"))
        (images / "x009.png").write_bytes(b"no picture")
        lines = ["stem,patient,split,finding"]
        lines += [
            f"x{at:03d},p{at // 2},{'train' if at < 6 else 'val' if at < 9 else 'test'},{'ab'[at % 2]}"
            for at in range(12)
        ]
        # p4 has x008 in val and x009 in test.
        (root / "index.csv").write_text("\n".join(lines) + "\n")
        (masks / "x011.png").unlink()
        found = audited(root, tmp_path / "out")
        assert found.split_conflicts == {"p4": ["val", "test"]}
        assert [(one.first.image_id, one.second.image_id, one.crosses_split) for one in found.duplicates] == [
            ("x000", "x001", False),
            ("x004", "x006", True),
        ]
        assert found.duplicates[0].bits is None
        assert "x009" in {one.image_id for one in found.set_aside}
        assert {one.image_id: one.split for one in found.images}["x008"] == "val"
        rows = {row["image_id"]: row for row in csv.DictReader((tmp_path / "out/audit.csv").open())}
        assert len(rows) == 12
        assert rows["x009"]["reason"] == "unreadable"
        assert rows["x000"]["image_sha256"] == hashlib.sha256((images / "x000.png").read_bytes()).hexdigest()
        assert int(rows["x000"]["parts"]) == 2
        assert (tmp_path / "out/audit.html").exists()
        assert not list((tmp_path / "out").glob("*.parquet"))

    def test_nothing_can_be_read(self, tmp_path: Path) -> None:
        root = write_pairs(tmp_path / "corpus", 2)
        for file in (root / "images").iterdir():
            file.write_bytes(b"no picture")
        with pytest.raises(UserError, match="None of 2 images can be read"):
            audited(root, tmp_path / "out")

    @pytest.mark.skipif(not (DATA / "wbc").exists(), reason="the blood cells are not here")
    def test_blood_cells(self, tmp_path: Path) -> None:
        root = (DATA / "wbc").resolve()
        found = audited(root, tmp_path, channels=3, classes=3, class_names=["cytoplasm", "nucleus"])
        pairs = {(one.first.image_id, one.second.image_id): one.bits for one in found.duplicates}
        assert pairs == {("ds1_112", "ds1_139"): None, ("ds1_166", "ds1_171"): 20, ("ds1_167", "ds1_169"): 26}
        assert len(found.images) == 300
        assert (tmp_path / "audit.html").stat().st_size < 6 << 20
