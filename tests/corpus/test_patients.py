"""Whose images are, and in which split, by tables, names of files, folders and roots."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import UserError
from tests.corpus.trees import fill, listing


class TestPatients:
    def test_a_table_may_name_a_patient_as_the_image(self, tmp_path: Path) -> None:
        for root in ("one", "two"):
            names = [name for number in range(6) for name in (f"A{number:03d}", f"A{number:03d}_lat")]
            fill(tmp_path / root, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
            rows = "".join(f"{name},{root}-{name}\n" if root == "two" else f"{name},{name[:4]}\n" for name in names)
            (tmp_path / root / "index.csv").write_text(f"image_id,patient_id\n{rows}")
        found = list_corpus(CorpusSettings(root=[str(tmp_path / "one"), str(tmp_path / "two")]))
        assert found.unknown_patients == 0
        assert found.warnings == []
        assert len({record.patient_id for record in found.records}) == 6 + 12
        assert {record.patient_id for record in found.records if record.groups["root"] == "one"} == {
            f"A{number:03d}" for number in range(6)
        }

    def test_a_table_wins_over_names(self, tmp_path: Path) -> None:
        names = [f"{patient:08d}_{visit:03d}" for patient in range(4) for visit in range(3)]
        fill(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
        (tmp_path / "index.csv").write_text("image_id,patient_id\n" + "".join(f"{name},{name}\n" for name in names))
        assert len({record.patient_id for record in listing(tmp_path).records}) == 12

    @pytest.mark.parametrize(
        "name",
        [
            *("site1_patient_{:03d}_t{}", "{:07d}-20200110-{}", "Case{:02d}{x}", "JX-{:03d}-v{}", "AB{:03d}-{word}"),
            *("{:03d}_{word}", "study_{:04d}_20210304_{}_{x}"),
        ],
    )
    def test_visits_dates_and_letters(self, name: str, tmp_path: Path) -> None:
        words = ("baseline", "followup")
        names = [name.format(p, visit, x="ab"[visit], word=words[visit]) for p in range(8) for visit in (0, 1)]
        fill(tmp_path, *(f"{kind}/{one}.png" for kind in ("images", "masks") for one in names))
        found = listing(tmp_path)
        assert len({record.patient_id for record in found.records}) == 8

    def test_capitals_are_no_difference(self, tmp_path: Path) -> None:
        names = [f"{'Pp'[visit]}atient_{patient:02d}_{visit}" for patient in range(8) for visit in (0, 1)]
        fill(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
        assert len({record.patient_id for record in listing(tmp_path).records}) == 8

    def test_numbers_that_restart_in_each_split(self, tmp_path: Path) -> None:
        """Kermany et al. count their patients from 1 in the folders to train and to test."""
        people = [(split, n) for split in ("train", "test") for n in (1, 2, 3)]
        names = [f"{split}/{{}}/PNEUMONIA/person{n}_virus_{n + k}" for split, n in people for k in (0, 9)]
        fill(tmp_path, *(f"{name.format(kind)}.jpeg" for kind in ("images", "masks") for name in names))
        found = listing(tmp_path)
        assert Counter(record.patient_id for record in found.records) == {
            f"{split}/person{n}": 2 for split in ("train", "test") for n in (1, 2, 3)
        }
        assign_splits(found.records, found.corpus.split)

    def test_a_compressed_table(self, tmp_path: Path) -> None:
        """MIMIC-CXR-JPG has its tables as .csv.gz, and the split of an image under the name of its file."""
        names = [f"files/p1{n}/p1{n}000032/s5041426{n}/{n}aa804e-bde0afdd" for n in range(6)]
        fill(tmp_path, *(f"{name}.jpg" for name in names), *(f"masks/{name.rpartition('/')[2]}.png" for name in names))
        sides = ["train"] * 4 + ["validate"] * 2
        rows = "".join(f"{n}aa804e-bde0afdd,5041426{n},1{n}000032,{side}\n" for n, side in enumerate(sides))
        table = gzip.compress(f"dicom_id,study_id,subject_id,split\n{rows}".encode())
        (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(table)
        found = listing(tmp_path)
        assert Counter(record.split for record in found.records) == {"train": 4, "val": 2}
        assert {record.patient_id for record in found.records} == {f"1{n}000032" for n in range(6)}
        (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(table[:-9])
        assert "compressed, found another or a damaged one" in listing(tmp_path).warnings[0]

    def test_paths_from_above_the_root(self, tmp_path: Path) -> None:
        """The tables of CheXpert name its own folder; a patient whose files are absent is not taken for another."""
        for number in (1, 2, 3):
            study = f"train/patient0000{number}/study1"
            fill(tmp_path, f"{study}/view1_frontal.jpg", f"masks/{study}/view1_frontal.png")
        head = "CheXpert-v1.0-small/train/patient0000"
        rows = "".join(f"{head}{n}/study{2 if n == 4 else 1}/view1_frontal.jpg,{'FM'[n % 2]}\n" for n in range(1, 5))
        (tmp_path / "train.csv").write_text(f"Path,Sex\n{rows}")
        found = listing(tmp_path)
        assert [record.groups["Sex"] for record in found.records] == ["M", "F", "M"]
        assert {record.split for record in found.records} == {"train"}

    def test_a_pattern_sees_the_path_below_the_table(self, tmp_path: Path) -> None:
        root = tmp_path / "set_2024_x"
        fill(root, *(f"{kind}/{name}_0.png" for kind in ("i", "m") for name in range(1001, 1007)))
        rows = "".join(f"i/{name}_0.png,m/{name}_0.png\n" for name in range(1001, 1007))
        (root / "list.csv").write_text(f"image_uri,mask_uri\n{rows}")
        found = list_corpus(CorpusSettings(root=str(root / "list.csv"), patients=r"(\d{4})_"))
        assert len({record.patient_id for record in found.records}) == 6


class TestSplits:
    @pytest.mark.parametrize(
        ("folders", "expected"),
        [
            (("train", "validate", "test"), ("train", "val", "test")),
            (("training", "evaluation", "testing"), ("train", "val", "test")),
            (("train", "val", "hold-out"), ("train", "val", "test")),
            (("Train", "Dev", "Held_Out"), ("train", "val", "test")),
        ],
    )
    def test_words(self, folders: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path) -> None:
        for folder in folders:
            fill(tmp_path, *(f"{folder}/{kind}/{folder[0]}{n}.png" for kind in ("images", "masks") for n in range(4)))
        splits = {record.image_id.partition("/")[0]: record.split for record in listing(tmp_path).records}
        assert tuple(splits[name] for name in folders) == expected

    @pytest.mark.parametrize(
        ("folders", "expected"),
        [
            (("nih_chest_train", "nih_chest_test"), ("train", "test")),
            (("train hospital A", "test hospital B"), ("train", "test")),
            (("Brixia test of time", "Lyon dev hospital"), (None, None)),
            (("Development Cohort", "Validation Cohort"), ("train", "val")),
            (("TR", "FR", "DE"), (None, None, None)),
        ],
    )
    def test_titles(self, folders: tuple[str, ...], expected: tuple[str | None, ...], tmp_path: Path) -> None:
        for folder in folders:
            names = [f"{folder[:2]}{folder[-1]}{n}" for n in range(4)]
            fill(tmp_path, *(f"{folder}/{kind}/{name}.png" for kind in ("images", "masks") for name in names))
        splits = {record.image_id.partition("/")[0]: record.split for record in listing(tmp_path).records}
        assert tuple(splits[name] for name in folders) == expected
        roots = list_corpus(CorpusSettings(root=[str(tmp_path / folder) for folder in folders]))
        splits = {record.groups["root"]: record.split for record in roots.records}
        assert tuple(splits[name] for name in folders) == expected

    def test_names_above_the_roots(self, tmp_path: Path) -> None:
        for folder in ("train", "test"):
            names = [f"{kind}/{folder[1]}{n}.png" for kind in ("images", "masks") for n in range(4)]
            fill(tmp_path / folder / "pairs", *names)
        roots = [str(tmp_path / folder / "pairs") for folder in ("train", "test")]
        assert Counter(record.split for record in list_corpus(CorpusSettings(root=roots)).records) == {
            "train": 4,
            "test": 4,
        }

    def test_a_folder_that_is_none_is_named(self, tmp_path: Path) -> None:
        for folder in ("train", "extra"):
            fill(tmp_path, *(f"{folder}/{kind}/{folder[0]}{n}.png" for kind in ("images", "masks") for n in range(4)))
        (warning,) = listing(tmp_path).warnings
        assert warning.startswith("The corpus prescribes the split of 4 of 8 images. The others, in extra are assigned")

    def test_names_of_roots(self, tmp_path: Path) -> None:
        for folder in ("train", "test"):
            fill(tmp_path / folder, *(f"{kind}/{folder[1]}{n}.png" for kind in ("images", "masks") for n in range(4)))
        found = list_corpus(CorpusSettings(root=[str(tmp_path / "train"), str(tmp_path / "test")]))
        assert Counter(record.split for record in found.records) == {"train": 4, "test": 4}

    def test_tables_of_the_splits(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(8)))
        for name, numbers in (("train.csv", range(5)), ("test.csv", range(5, 8))):
            (tmp_path / name).write_text("image_id,age\n" + "".join(f"{n},5{n}\n" for n in numbers))
        assert Counter(record.split for record in listing(tmp_path).records) == {"train": 5, "test": 3}

    def test_rows_that_contradict_each_other(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(4)))
        rows = "".join(f"{n},p{n},train\n" for n in range(4)) + "0,p9,test\n"
        (tmp_path / "people.csv").write_text(f"image_id,patient_id,split\n{rows}")
        (warning,) = listing(tmp_path).warnings
        assert warning == (
            "2 rows of the table people.csv give an image another patient or split than a row before did, which counts."
        )


class TestLists:
    def fill(self, root: Path, count: int = 20) -> None:
        fill(root, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(1, count + 1)))

    def test_of_a_few_images_to_test(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "test.txt").write_text("1\n2.png\nimages/3.png\n4 -1\n")
        assert Counter(record.split for record in listing(tmp_path).records) == {"test": 4, None: 16}

    def test_deep_in_the_tree(self, tmp_path: Path) -> None:
        voc = tmp_path / "VOCdevkit" / "VOC2012"
        fill(voc, *(f"JPEGImages/{n}.jpg" for n in range(6)), *(f"SegmentationClass/{n}.png" for n in range(6)))
        lists = voc / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, numbers in (("train", (0, 1, 2, 3)), ("val", (4, 5))):
            (lists / f"{name}.txt").write_text("".join(f"{n}\n" for n in numbers))
        assert Counter(record.split for record in listing(tmp_path).records) == {"train": 4, "val": 2}

    def test_a_log_is_none(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "train_log.txt").write_text("".join(f"{n} loss 0.{n}\n" for n in range(1, 16)))
        assert {record.split for record in listing(tmp_path).records} == {None}

    def test_two_lists_with_the_same_image(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "train.txt").write_text("".join(f"{n}\n" for n in range(1, 16)))
        (tmp_path / "test.txt").write_text("".join(f"{n}\n" for n in range(14, 21)))
        (warning,) = listing(tmp_path).warnings
        assert warning == "2 images are in the lists of two splits; the first list counts."

    def test_tables_of_all_images(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        for name in ("valid_images.csv", "test_results.csv"):
            (tmp_path / name).write_text("image_id,x\n" + "".join(f"{n},1\n" for n in range(1, 21)))
        assert {record.split for record in listing(tmp_path).records} == {None}


class TestColumns:
    def test_numbers_of_rows_are_no_names(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(1, 21)))
        rows = "".join(f"{n},{21 - n}.png,p{(21 - n) // 2}\n" for n in range(1, 21))
        (tmp_path / "people.csv").write_text(f"nr,Datei,patient_id\n{rows}")
        found = listing(tmp_path)
        assert {record.image_id: record.patient_id for record in found.records}["20"] == "p10"
        assert "20 images by its column Datei" in next(line for line in found.recognition if "people.csv" in line)

    @pytest.mark.parametrize(
        ("name", "words"),
        [("subset", ("train", "test")), ("Datensatz", ("Training", "Hold-out")), ("set", ("Train set", "Test set"))],
    )
    def test_a_split_of_another_name(self, name: str, words: tuple[str, str], tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(10)))
        rows = "".join(f"{n},{words[n > 7]}\n" for n in range(10))
        (tmp_path / "people.csv").write_text(f"image_id,{name}\n{rows}")
        assert Counter(record.split for record in listing(tmp_path).records) == {"train": 8, "test": 2}

    def test_an_odd_word_is_refused(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(10)))
        rows = "".join(f"{n},{'exclude' if n == 4 else 'train'}\n" for n in range(10))
        (tmp_path / "people.csv").write_text(f"image_id,subset\n{rows}")
        with pytest.raises(UserError, match="row 5 after the header has the split 'exclude' in the column subset"):
            listing(tmp_path)


def test_a_table_that_pairs_images_otherwise(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(6)))
    rows = "".join(f"images/{n}.png,masks/{(n + 3) % 6}.png\n" for n in range(6))
    (tmp_path / "pairs.csv").write_text(f"image,mask\n{rows}")
    with pytest.raises(UserError, match=r"pairs.csv gives 0 the mask 3, and by their names it has 0"):
        listing(tmp_path)
    found = listing(tmp_path / "pairs.csv")
    assert found.records[0].masks[0].uri.endswith("masks/3.png")
