from __future__ import annotations

import csv
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.found import Found
from lungseg_ray.corpus.layouts import Listing, list_corpus, manifest, table
from lungseg_ray.errors import UserError
from lungseg_ray.storage import locate, location
from tests.corpus.trees import listing, reasons

GOOD = "image_uri,mask_uri\ngood.png,mask.png\n"


def of_rows(root: Path, *rows: tuple[str, str], **settings: object) -> Listing:
    """The listing of a Parquet manifest, which may hold any text."""
    columns = {"image_uri": ["good.png", *(row[0] for row in rows)], "mask_uri": ["m.png", *(row[1] for row in rows)]}
    pq.write_table(pa.table(columns), root / "list.parquet")
    found = listing(root / "list.parquet", **settings)
    assert "good" in [record.image_id for record in found.records]
    return found


class TestManifest:
    def test_csv(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(
            "image_uri,mask_uri,patient_id,split,sex\n"
            "x/a.png,m/a.png,01,valid,f\n"
            "y/b.png,/abs/b.png,,,\n"
            "z/b.png,file:///abs/c.png,02,test,m\n"
            "c.png,,03,,\n"
        )
        found = listing(tmp_path / "list.csv", outside=True)
        assert (found.layout, found.because) == ("manifest", "corpus.root is a .csv file")
        assert [item.image_id for item in found.records] == ["a", "y/b", "z/b"]
        a, yb, zb = found.records
        assert (a.image_uri, a.mask_uris) == (str(tmp_path / "x/a.png"), (str(tmp_path / "m/a.png"),))
        assert (a.patient_id, a.split, dict(a.groups)) == ("01", "val", {"sex": "f"})
        assert (yb.patient_id, yb.split, yb.mask_uris, dict(yb.groups)) == ("y/b", None, ("/abs/b.png",), {})
        assert zb.mask_uris == ("/abs/c.png",)
        assert reasons(found) == {"c": "no_mask"}

    def test_parquet_without_optional_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image_uri": ["b.png", "a.png"], "mask_uri": ["m.png", None]}), tmp_path / "l.parquet")
        found = listing(tmp_path / "l.parquet", layout="manifest")
        assert [(item.image_id, item.patient_id) for item in found.records] == [("b", "b")]
        assert reasons(found) == {"a": "no_mask"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("scan,mask_uri\na,b\n", r"found scan, mask_uri\. .*: --corpus\.columns image=COLUMN$"),
            ("one,two\na,b\n", r"found one, two\. .*columns image=COLUMN --corpus\.columns mask=COLUMN$"),
            ("image_uri,mask_uri,split\na.png,b.png,\nc.png,d.png,third\n", "row 2 .*'third' in the column split; exp"),
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
        with pytest.raises(UserError, match=r"expects a \.csv, \.tsv, \.xlsx or \.parquet file"):
            listing(tmp_path, layout="manifest")

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "l.parquet").write_text("image_uri")
        with pytest.raises(UserError, match="expected a Parquet file"):
            listing(tmp_path / "l.parquet")


def said(file: Path) -> bool:
    """Whether a manifest is refused, in few words; nothing else is raised."""
    try:
        listing(file)
    except UserError as error:
        words = str(error)
    else:
        return False
    assert len(words) < 600
    return True


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that these manifests name do not exist; some of them would be in buckets."""
    monkeypatch.setattr("lungseg_ray.corpus.layouts.look", lambda records, settings, known: Found(settings, records))


@pytest.mark.usefixtures("no_pixels")
class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "../x.png",
            "a/../../x.png",
            "/etc/x.png",
            "//etc/x.png",
            "..",
            ".",
            "",
            "file:///etc/x.png",
            "s3://bucket/x.png",
        ],
    )
    def test_leaves_the_folder(self, path: str, tmp_path: Path) -> None:
        if path:
            (one,) = of_rows(tmp_path, (path, "m.png")).set_aside
            assert (one.reason, one.uri) == ("bad_path", str(tmp_path / "list.parquet"))
            assert one.detail.startswith(f"row 2 after the header names {path}; expected a path within")
            assert "corpus.outside" in one.detail
        path = path or "../m.png"
        (one,) = of_rows(tmp_path, ("x.png", path)).set_aside
        assert (one.image_id, one.reason) == ("x", "bad_path")

    def test_leaves_the_folder_by_a_link(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "way.png").symlink_to(outside / "x.png")
        (folder / "here.png").symlink_to("good.png")
        found = of_rows(folder, ("way.png", "m.png"), ("here.png", "m.png"))
        assert [one.reason for one in found.set_aside] == ["bad_path"]
        assert str(folder / "here.png") in {record.image_uri for record in found.records}
        assert not of_rows(folder, ("way.png", "m.png"), outside=True).set_aside

    def test_within_the_folder(self, tmp_path: Path) -> None:
        inside = [
            "a/../x1.png",
            f"{tmp_path}/x2.png",
            f"{tmp_path}/a/..//./x3.png",
            f"file://{tmp_path}/x4.png",
            f"file://localhost{tmp_path}/x5.png",
            "./x6.png",
            "a//../x7.png",
            "..x8.png",
            "x 9@?.png",
        ]
        found = of_rows(tmp_path, *((path, "m.png") for path in inside))
        assert found.set_aside == []
        names = ["good.png", *(f"x{n}.png" for n in range(1, 8)), "..x8.png", "x 9@?.png"]
        assert {record.image_uri for record in found.records} == {f"{tmp_path}/{name}" for name in names}

    def test_outside_is_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # No store answers here.
        monkeypatch.setattr(manifest, "entries_of", lambda places: {})
        found = of_rows(
            tmp_path,
            ("../x.png", "m.png"),
            ("/etc/y.png", "s3://bucket/a/../m.png"),
            ("s3://b/z.png", "m"),
            outside=True,
        )
        assert {record.image_uri for record in found.records} == {
            str(tmp_path / "good.png"),
            str(tmp_path.parent / "x.png"),
            "/etc/y.png",
            "s3://b/z.png",
        }
        assert "s3://bucket/m.png" in {record.mask_uris[0] for record in found.records}

    @pytest.mark.parametrize(
        "path",
        [
            "ftp://host/x.png",
            "phantom://0/64/0",
            "s3://",
            "s3://bucket",
            "s3://bucket/..",
            "s3://bucket/../..",
            "s3:///x.png",
            "s3://a//x.png",
            "file://",
            "file://localhost",
            "file://host/x.png",
            "file:///x.png?y",
            "file:///x.png#y",
            "file:///x%00.png",
            "file://[x/y.png",
            "x\0.png",
            "x" * 4097,
            "a/" * 50_000 + "x.png",
        ],
    )
    @pytest.mark.parametrize("outside", [False, True])
    def test_means_nothing(self, path: str, outside: bool, tmp_path: Path) -> None:
        (one,) = of_rows(tmp_path, (path, "m.png"), outside=outside).set_aside
        assert one.reason == "bad_path"
        assert one.detail.startswith("row 2 after the header names ")
        assert len(one.detail) < 400
        assert len(one.image_id) < 200
        assert f"{one.detail}{one.image_id}".isprintable()

    @pytest.mark.parametrize(
        "path",
        [
            "s3://key:SECRET@bucket/x.png",
            "s3://bucket/x.png?sign=SECRET/a.b",
            "SECRET@s3://b/x.png",
            "s3://key:SECRET@bucket/" + "x" * 5000,
            "s3://SECRET@b/\0x.png",
        ],
    )
    @pytest.mark.parametrize("outside", [False, True])
    def test_secrets_are_not_repeated(self, path: str, outside: bool, tmp_path: Path) -> None:
        # The second time with ids that are paths, since two rows share a stem.
        for rows in ([(path, "m.png")], [(path, "m.png"), ("a/x.png", "m.png")], [("x.png", path)]):
            found = of_rows(tmp_path, *rows, outside=outside)
            (one,) = found.set_aside
            assert one.reason == "bad_path"
            assert "SECRET" not in json.dumps([asdict(one), *map(asdict, found.records)])

    def test_in_a_bucket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(location, "SCHEMES", ("mock",))
        root = locate("mock://bucket/deep/corpus")
        root.filesystem.create_dir(root.path)
        paths = [
            "a/../x.png",
            "mock://bucket/deep/corpus/y.png",
            "../z.png",
            "../../../w.png",
            "mock://other/v.png",
            "/u.png",
        ]
        lines = "".join(f"{path},m.png\n" for path in paths)
        (root / "list.csv").write_text(f"image_uri,mask_uri\n{lines}")
        found = list_corpus(CorpusSettings(root="mock://bucket/deep/corpus/list.csv"))
        assert [record.image_uri for record in found.records] == [f"{root}/x.png", f"{root}/y.png"]
        assert reasons(found) == dict.fromkeys("uvwz", "bad_path")
        found = list_corpus(CorpusSettings(root="mock://bucket/deep/corpus/list.csv", outside=True))
        assert {record.image_uri for record in found.records[:2]} == {"/u.png", "mock://other/v.png"}
        # Three folders up there is no bucket left.
        assert reasons(found) == {"w": "bad_path"}

    def test_root_with_dots(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "list.csv").write_text(GOOD + f"{tmp_path}/x.png,m.png\n")
        found = listing(Path(f"{tmp_path}/a/../list.csv"))
        assert (len(found.records), found.set_aside) == (2, [])


class TestTable:
    def test_two_ways_to_write_one_path(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("image_uri,mask_uri\na/x.png,m.png\n./a//x.png,m.png\n")
        with pytest.raises(UserError, match=r"rows 1 and 2 .* both name a/x;"):
            listing(tmp_path / "list.csv")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"image_uri,mask_uri\n" + b"x" * 200_000 + b",m.png\n", r"row 1 after the header cannot be read as CSV"),
            (b'image_uri,mask_uri\na,"' + b"b,c\n" * 50_000, r"row 1 after .*a quote that is not closed"),
            (b"image_uri,mask_uri,image_uri\na,b,c\n", r"expected each column once, found image_uri more than once"),
            (b"i\x81m", "expected a CSV file in UTF-8"),
            (b"\xff\xfei\0m", "expected a CSV file in UTF-16"),
            (GOOD.encode("utf-16-le"), "with a byte order mark, found zero bytes in its first line. Save it as UTF-8"),
            (
                b"image_uri,mask,Mask\na,b,c\n",
                r"columns mask, Mask have .* same meaning.*columns '{\"mask\": \"mask\"}'",
            ),
            (b"", "found nothing. Name the missing one"),
            (b",".join(b"c%d" % n for n in range(1500)) + b"\n", "c7 and 1492 more. Name the missing one"),
        ],
    )
    def test_csv_that_is_none(self, data: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            listing(tmp_path / "list.csv")
        assert len(str(caught.value)) < 600

    def test_nul_in_a_csv(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_bytes(GOOD.encode() + b"a\0b.png,m.png\n")
        assert reasons(listing(tmp_path / "list.csv")) == {"a\\x00b": "bad_path"}

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            (pa.array([[1]]), "the column more is list<.*>; expected text"),
            (pa.array([{"a": 1}]), "the column more is struct<.*>; expected text"),
            (pa.array([b"x"]), "the column more is binary; expected text"),
            (pa.array([b"x"], pa.binary(1)), "the column more is fixed_size_binary"),
        ],
    )
    def test_columns_that_are_not_plain(self, column: pa.Array, message: str, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image_uri": ["a"], "mask_uri": ["b"], "more": column}), tmp_path / "l.parquet")
        with pytest.raises(UserError, match=message):
            listing(tmp_path / "l.parquet")

    def test_plain_columns(self, tmp_path: Path) -> None:
        columns = {
            "image_uri": ["a.png"],
            "mask_uri": pa.array(["b.png"], pa.large_string()),
            "site": pa.array(["north"]).dictionary_encode(),
            "age": [7],
            "seen": pa.array([0], pa.timestamp("s")),
            "nothing": pa.nulls(1),
        }
        pq.write_table(pa.table(columns), tmp_path / "l.parquet")
        (record,) = listing(tmp_path / "l.parquet").records
        assert dict(record.groups) == {"site": "north", "age": "7", "seen": "1970-01-01 00:00:00"}

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        two = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["image_uri", "mask_uri", "mask_uri"])
        pq.write_table(two, tmp_path / "l.parquet")
        with pytest.raises(UserError, match="found mask_uri more than once"):
            listing(tmp_path / "l.parquet")

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        file = tmp_path / "l.parquet"
        rows = [f"{n}.png" for n in range(300)]
        pq.write_table(pa.table({"image_uri": rows, "mask_uri": rows}), file)
        whole = file.read_bytes()
        refused = 0
        for place in range(0, len(whole), 29):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
                file.write_bytes(damaged)
                # What is damaged and can still be read is text like any other.
                refused += said(file)
        assert refused > len(whole) / 29

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        class Evil(pa.ExtensionType):
            def __init__(self) -> None:
                super().__init__(pa.string(), "tests.evil")

            def __arrow_ext_serialize__(self) -> bytes:
                return pickle.dumps("whatever")

            @classmethod
            def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Evil:
                called.append(serialized)
                return cls()

        called: list[bytes] = []
        pa.register_extension_type(Evil())
        try:
            sites = pa.ExtensionArray.from_storage(Evil(), pa.array(["north"]))
            pq.write_table(pa.table({"image_uri": ["a"], "mask_uri": ["b"], "site": sites}), tmp_path / "l.parquet")
            pq.read_table(tmp_path / "l.parquet")
            assert called
            called.clear()
            with pytest.raises(UserError, match=r"l\.parquet: found columns of extension types"):
                listing(tmp_path / "l.parquet")
            assert called == []
        finally:
            pa.unregister_extension_type("tests.evil")

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with (tmp_path / "list.csv").open("wb") as file:
            file.truncate((1 << 30) + 1)
        with pytest.raises(UserError, match="at most 1024 MiB, found 1024 MiB"):
            listing(tmp_path / "list.csv")
        monkeypatch.setattr(table, "MOST_ROWS", 1)
        pq.write_table(pa.table({"image_uri": ["a", "b"], "mask_uri": ["c", "d"]}), tmp_path / "l.parquet")
        with pytest.raises(UserError, match="at most 1 rows, found 2"):
            listing(tmp_path / "l.parquet")

    def test_what_is_set_aside_can_be_written(self, tmp_path: Path) -> None:
        found = of_rows(tmp_path, ("../\n\0\x1b[31m.png", "m.png"))
        with (tmp_path / "out.csv").open("w") as file:
            csv.writer(file).writerows([one.image_id, one.detail] for one in found.set_aside)
        assert "\x1b" not in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("cell", ["l.png|r.png", "l.png;r.png", "['l.png', 'r.png']", "l.png | r.png"])
def test_a_cell_of_several_masks(cell: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f'image,mask\na.png,"{cell}"\nb.png,nan\n')
    found = listing(tmp_path / "list.csv")
    assert [source.uri.rpartition("/")[2] for source in found.records[0].masks] == ["l.png", "r.png"]
    assert [(one.image_id, one.reason) for one in found.set_aside] == [("b", "no_mask")]
    assert found.warnings[0].startswith("None of 1 image that were looked at can be opened: ")


def test_a_table_of_windows(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("image;mask;Geschlecht\na.png;m.png;m\u00e4nnlich\n".encode("cp1252"))
    (record,) = listing(tmp_path / "list.csv").records
    assert record.groups == {"Geschlecht": "m\u00e4nnlich"}


def test_a_title_above_the_header_of_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (("Study XY, exported 2020",), (), ("image", "mask", "patient_id"), ("a.png", "m.png", "p7")):
        book.worksheets[0].append(row)
    book.save(tmp_path / "list.xlsx")
    (record,) = listing(tmp_path / "list.xlsx").records
    assert record.patient_id == "p7"


class TestOddTables:
    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".xlsx"])
    def test_too_many_columns(self, suffix: str, tmp_path: Path) -> None:
        file, names = tmp_path / f"list{suffix}", [f"c{number}" for number in range(2001)]
        if suffix == ".csv":
            file.write_text(",".join(names) + "\n")
        elif suffix == ".parquet":
            pq.write_table(pa.table({name: pa.array([], pa.string()) for name in names}), file)
        else:
            book = openpyxl.Workbook()
            book.worksheets[0].append(names)
            book.save(file)
        with pytest.raises(UserError, match="expected at most 2000 columns, found 2001"):
            listing(file)

    def test_too_many_cells(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "MOST_CELLS", 5)
        (tmp_path / "list.csv").write_text("image,mask\na,b\nc,d\ne,f\n")
        with pytest.raises(UserError, match="expected at most 5 cells, found 8"):
            listing(tmp_path / "list.csv")

    @pytest.mark.parametrize(
        "rows",
        [
            'a.png,m.png,"p1\nb.png,m.png,p2\n',
            'a.png,m.png,"p1\nb.png,m.png,"p2"\n',
            'a.png,m.png,"p"1\nb.png,m.png,p2\n',
        ],
    )
    def test_a_quote_that_is_never_closed(self, rows: str, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(f"image,mask,patient\n{rows}")
        with pytest.raises(UserError, match="Look there for a quote that is not closed"):
            listing(tmp_path / "list.csv")

    def test_a_column_with_values_and_no_name(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("image,mask,\na.png,m.png,p1\nb.png,n.png,p1\n")
        with pytest.raises(UserError, match="a column has values, such as p1, and no name above them"):
            listing(tmp_path / "list.csv")

    def test_rows_that_end_early(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("image,mask,patient\na.png,m.png,p1\nb.png,n.png\n")
        assert "1 of 2 images have no value in the column patient" in listing(tmp_path / "list.csv").warnings[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("merged", "cells of the rows 2 to 3 of the sheet are merged into one"),
            ("formula", "there are formulas whose values were never computed"),
            ("beyond", "row 1 after the header has more values than the header has columns"),
        ],
    )
    def test_what_a_workbook_does_not_show(self, change: str, message: str, tmp_path: Path) -> None:
        book = openpyxl.Workbook()
        sheet = book.worksheets[0]
        for row in (("image", "mask", "patient"), ("a.png", "m.png", "p1"), ("b.png", "n.png", "p1")):
            sheet.append(row)
        if change == "merged":
            sheet.merge_cells("C2:C3")
        elif change == "formula":
            sheet["C3"] = "=C2"
        else:
            sheet["D2"] = "x"
        book.save(tmp_path / "list.xlsx")
        with pytest.raises(UserError, match=message):
            listing(tmp_path / "list.xlsx")

    def test_a_text_that_is_repeated_is_in_memory_once(self, tmp_path: Path) -> None:
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["a" * 200_000]))
        pq.write_table(pa.table({"image": text, "mask": text}), tmp_path / "l.parquet", store_schema=False)
        # As texts of their own, these would be 8 GB.
        assert {one.reason for one in listing(tmp_path / "l.parquet").set_aside} == {"bad_path"}

    def test_columns_without_names(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(",image,mask, patient ,,\n0,a.png,m.png,p1,,\n1,b.png,n.png,p1,,\n")
        found = listing(tmp_path / "list.csv")
        assert [(record.image_id, record.patient_id, dict(record.groups)) for record in found.records] == [
            ("a", "p1", {}),
            ("b", "p1", {}),
        ]
