"""What names of files, folders and tables say of the images of a folder: patients, splits and groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lungseg_ray.errors import UserError
from tests.corpus.trees import fill, listing


class TestPatients:
    @pytest.mark.parametrize(
        ("name", "patients"),
        [
            ("{p:08d}_{k:03d}", 5),
            ("patient{p:05d}/study{k}/view1_frontal", 5),
            ("p10/p100000{p:02d}/s5041426{k}/a{k}", 5),
            ("sub-{p:02d}/ses-{k}/sub-{p:02d}_ses-{k}", 5),
            ("person{p}_virus_{k}", 5),
            ("Patient {p}/x{k}", 5),
            ("P{p}_{k}", 5),
            ("scan{p}-{k}", 5),
            ("K{p}17_lat{k}_frontal", 15),
            ("x{p}{k}", 15),
            ("lung_{p}{k}", 15),
        ],
    )
    def test_names(self, name: str, patients: int, tmp_path: Path) -> None:
        names = [name.format(p=p, k=k) for p in range(5) for k in range(3)]
        fill(tmp_path, *(f"images/{one}.png" for one in names), *(f"masks/{one}.png" for one in names))
        found = listing(tmp_path)
        assert len(found.records) == 15
        by_patient: dict[str, set[str]] = {}
        for record, one in zip(sorted(found.records, key=lambda record: record.image_uri), sorted(names), strict=True):
            by_patient.setdefault(record.patient_id, set()).add(one)
        assert len(by_patient) == patients
        assert {*map(len, by_patient.values())} == {15 // patients}
        # With `none`, each image is a patient of its own, aloud.
        assert len({record.patient_id for record in listing(tmp_path, patients="none").records}) == 15

    def test_names_with_and_without_an_ending(self, tmp_path: Path) -> None:
        names = [f"a/p{p}{end}" for p in range(10, 20) for end in ("", "_2")]
        fill(tmp_path, *(f"images/{one}.png" for one in names), *(f"masks/{one}.png" for one in names))
        assert len({record.patient_id for record in listing(tmp_path).records}) == 10

    def test_several_tables(self, tmp_path: Path) -> None:
        """Each says something; of what two say, the first counts."""
        fill(tmp_path, *(f"{folder}/{n}.png" for folder in ("images", "masks") for n in range(6)))
        (tmp_path / "ages.csv").write_text("image,age\n" + "".join(f"{n}.png,{40 + n}\n" for n in range(6)))
        (tmp_path / "patients.csv").write_text(
            "image,patient_id,split,age\n" + "".join(f"{n}.png,p{n // 2},{'test' * (n < 2)},1\n" for n in range(6))
        )
        found = listing(tmp_path)
        assert [record.patient_id for record in found.records] == ["p0", "p0", "p1", "p1", "p2", "p2"]
        assert [record.groups["age"] for record in found.records] == [f"{40 + n}" for n in range(6)]
        assert [record.split for record in found.records] == ["test"] * 2 + [None] * 4

    def test_a_table_of_some_images(self, tmp_path: Path) -> None:
        """As in NIH ChestX-ray14, where the table has the number of the patient, and the names have it with zeros."""
        names = [f"{p:08d}_{k:03d}" for p in range(1, 5) for k in range(3)]
        fill(tmp_path, *(f"{folder}/{name}.png" for folder in ("images", "masks") for name in names))
        rows = "".join(f"{name}.png,{int(name[:8])}\n" for name in names[:-4])
        (tmp_path / "Data_Entry_2017.csv").write_text(f"Image Index,Patient ID\n{rows}")
        found = listing(tmp_path)
        assert [record.patient_id for record in found.records] == [*"111222333", *["00000004"] * 3]
        assert "A table names the patients of 8 of 12 images." in found.warnings[0]

    def test_the_column_of_images(self, tmp_path: Path) -> None:
        """Numbers of patients may be names of images, too."""
        fill(tmp_path, *(f"{folder}/{n}.png" for folder in ("images", "masks") for n in range(1, 41)))
        rows = "".join(f"{(n + 3) // 4},{n},{'fm'[n % 2]}\n" for n in range(1, 41))
        (tmp_path / "meta.csv").write_text(f"patient,image,sex\n{rows}")
        found = {record.image_id: record for record in listing(tmp_path).records}
        assert {name: record.patient_id for name, record in found.items()} == {
            str(n): str((n + 3) // 4) for n in range(1, 41)
        }
        assert found["11"].groups["sex"] == "m"

    def test_a_setting_wins_over_a_table(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{folder}/a{n}.png" for folder in ("images", "masks") for n in range(20)))
        rows = "".join(f"a{n}.png,P{n},{n // 5}\n" for n in range(20))
        (tmp_path / "meta.csv").write_text(f"image,patient,Study-ID\n{rows}")
        for setting, patients in (("auto", 20), (r"(\d)\.?\d?$", 10), ("study_id", 4), ("none", 20)):
            found = listing(tmp_path, patients=setting)
            assert len({record.patient_id for record in found.records}) == patients, setting

    def test_tables_of_other_things(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{folder}/{n}.png" for folder in ("images", "masks") for n in range(6)))
        (tmp_path / "notes.csv").write_text("topic,text\na,b\n")
        (tmp_path / "meta.csv").write_text("scan,split\n" + "".join(f"{n},fold{n}\n" for n in range(6)))
        found = listing(tmp_path, columns={"image": "scan"})
        assert len(found.records) == 6
        assert any(line.startswith("Splits are not taken from a table") for line in found.warnings)
        with pytest.raises(UserError, match=r"corpus\.columns names file for image, and none of the tables has that"):
            listing(tmp_path, columns={"image": "file"})

    def test_a_guess_is_said(self, tmp_path: Path) -> None:
        names = [f"scan{p}-{k}" for p in range(5) for k in range(3)]
        fill(tmp_path, *(f"images/{one}.png" for one in names), *(f"masks/{one}.png" for one in names))
        (warning,) = listing(tmp_path).warnings
        assert "15 images were of 5 patients, whose images are kept together" in warning
        assert "--corpus.patients none" in warning

    def test_a_pattern(self, tmp_path: Path) -> None:
        names = [f"ward{k}_{p}" for p in range(5) for k in range(3)]
        fill(tmp_path, *(f"images/{one}.png" for one in names), *(f"masks/{one}.png" for one in names))
        found = listing(tmp_path, patients=r"_(\d+)$")
        assert sorted({record.patient_id for record in found.records}) == ["0", "1", "2", "3", "4"]
        assert "5 patients by the pattern" in found.recognition[-1]
        with pytest.raises(UserError, match=r"fits 3 of 15 images, and not images/ward0_1"):
            listing(tmp_path, patients=r"_(0)$")
        with pytest.raises(UserError, match=r"is no column of a table here, and as a pattern it has 0 groups"):
            listing(tmp_path, patients="PatientID")


class TestTables:
    def pairs(self, root: Path) -> Path:
        names = [f"x{n}" for n in range(6)]
        return fill(root, *(f"images/{one}.png" for one in names), *(f"masks/{one}.png" for one in names))

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("Index.csv", "stem,patient,split\n{}"),
            ("Data_Entry.csv", "Image Index,Patient ID,split\n{}"),
            ("metadata.tsv", "filename\tsubject_id\tSet\n{}"),
            ("list of images.csv", "Datei;PatientID;Split\n{}"),
        ],
    )
    def test_found_by_its_values(self, file: str, text: str, tmp_path: Path) -> None:
        sign = next(sign for sign in "\t;," if sign in text)
        splits = ("train", "validation", "testing")
        rows = "".join(sign.join([f"x{n}.png", f"p{n // 2}", splits[n // 2]]) + "\n" for n in range(6))
        self.pairs(tmp_path)
        (tmp_path / file).write_text(text.format(rows))
        found = listing(tmp_path)
        assert [record.patient_id for record in found.records] == ["p0", "p0", "p1", "p1", "p2", "p2"]
        assert [record.split for record in found.records] == ["train", "train", "val", "val", "test", "test"]
        assert f"table {file}: 6 images" in found.recognition[-1]

    def test_one_that_names_no_image_is_mentioned(self, tmp_path: Path) -> None:
        self.pairs(tmp_path)
        (tmp_path / "notes.csv").write_text("what,when\nfirst,1\n")
        (warning,) = listing(tmp_path).warnings
        assert warning == "The table notes.csv is not used: none of its columns (what, when) names the images."

    def test_a_column_of_patients_by_name(self, tmp_path: Path) -> None:
        self.pairs(tmp_path)
        (tmp_path / "meta.csv").write_text("image,cohort no\n" + "".join(f"x{n},{n % 3}\n" for n in range(6)))
        assert len({record.patient_id for record in listing(tmp_path).records}) == 6
        assert len({record.patient_id for record in listing(tmp_path, patients="cohort no").records}) == 3
