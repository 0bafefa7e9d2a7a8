"""The layouts of public sets, of which `trees` makes every file."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import Listing, files_state, list_corpus
from lungseg_ray.corpus.layouts.readings import reading_groups
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError
from tests.corpus import trees
from tests.corpus.kinds import png
from tests.corpus.trees import listing, reasons


def counts(found: Listing, group: str) -> dict[str, int]:
    return dict(Counter(record.groups.get(group, "-") for record in [*found.records, *found.unlabelled]))


def by_id(found: Listing) -> dict[str, Record]:
    return {record.image_id: record for record in [*found.records, *found.unlabelled]}


def test_names_of_the_public_sets() -> None:
    # As published: 80 + 58, 326 + 336 of which 566 have masks, 154 + 93.
    assert Counter(name[-1] for name in trees.MONTGOMERY) == {"0": 80, "1": 58}
    assert Counter(name[-1] for name in trees.SHENZHEN) == {"0": 326, "1": 336}
    assert len(set(trees.SHENZHEN_BARE)) == 96
    assert Counter(name[:5] for name in trees.JSRT) == {"JPCLN": 154, "JPCNN": 93}


@pytest.mark.parametrize("below", ["", "MontgomerySet"])
def test_montgomery(below: str, tmp_path: Path) -> None:
    root = trees.montgomery(tmp_path) / below
    found = listing(root)
    assert (found.layout, found.because) == (
        "montgomery",
        "found CXR_png/MCUCXR_*.png and ManualMask/leftMask/ or rightMask/",
    )
    assert (len(found.records), found.unlabelled, found.set_aside, found.ignored) == (138, [], [], 0)
    first = found.records[0]
    top = tmp_path / "MontgomerySet"
    files = [f"{folder}/MCUCXR_0001_0.png" for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")]
    assert [first.image_uri, *first.mask_uris] == [str(top / file) for file in files]
    assert (first.image_id, first.patient_id, first.split, first.mask_scales) == ("MCUCXR_0001_0",) * 2 + (None, (1.0,))
    # The first reading: F, 020Y.
    assert dict(first.groups) == {"sex": "female", "age": "20-29", "finding": "normal"}
    assert counts(found, "finding") == {"normal": 80, "tb": 58}
    assert counts(found, "sex") == {"female": 69, "male": 69}
    # 20 + index % 60: 138 images are two rounds of 10 a decade, and 18 more from 20 on.
    assert counts(found, "age") == {"20-29": 30, "30-39": 28} | dict.fromkeys(["40-49", "50-59", "60-69", "70-79"], 20)


def test_montgomery_damaged(tmp_path: Path) -> None:
    top = trees.montgomery(tmp_path, count=10) / "MontgomerySet"
    names = sorted(path.stem for path in (top / "CXR_png").iterdir())
    (top / f"ManualMask/leftMask/{names[0]}.png").unlink()
    (top / f"ManualMask/leftMask/{names[1]}.png").unlink()
    (top / f"ManualMask/rightMask/{names[1]}.png").unlink()
    (top / f"CXR_png/{names[2]}.png").unlink()
    (top / f"ClinicalReadings/{names[3]}.txt").write_bytes(b"\xff\xfe\x00 scan 4711 of nobody")
    (top / f"ClinicalReadings/{names[4]}.txt").unlink()
    (top / f"ClinicalReadings/{names[5]}.txt").unlink()
    (top / f"ClinicalReadings/{names[5]}.txt").mkdir()
    (top / "CXR_png/notes.txt").write_bytes(b"x")
    (tmp_path / "copy/CXR_png").mkdir(parents=True)
    shutil.copy(top / f"CXR_png/{names[6]}.png", tmp_path / "copy/CXR_png")
    found = listing(tmp_path)
    assert reasons(found) == {names[0]: "no_mask", names[1]: "no_mask", names[2]: "no_image", names[6]: "ambiguous"}
    details = {one.image_id: one.detail for one in found.set_aside}
    assert details[names[0]] == (
        f"expected leftMask/{names[0]} and rightMask/{names[0]}, found CXR_png/ and rightMask/ alone"
    )
    assert details[names[6]] == (
        f"expected one file of this name, found MontgomerySet/CXR_png/{names[6]}.png, copy/CXR_png/{names[6]}.png"
    )
    assert len(found.records) == 6
    groups = {name: dict(record.groups) for name, record in by_id(found).items()}
    # What cannot be read says nothing, and the name of the file still does.
    for name in names[3:6]:
        assert groups[name] == {"finding": "normal" if name.endswith("0") else "tb"}
    assert found.ignored == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Patient's Sex: M\nPatient's Age: 004Y\nnormal", ("male", "00-09")),
        ("Patient's Sex: O\r\nPatient's Age: 103Y\r\n5 nodules", ("other", "90+")),
        ("Patient's Sex: F\nno age is known, 30 films are", ("female", None)),
        ("male 45yrs\nnormal", ("male", "40-49")),
        ("Female, 28yrs\nSTB", ("female", "20-29")),
        ("femal 32yrs", ("female", "30-39")),
        ("female24yrs", ("female", "20-29")),
        ("male , 29yrs  \t\nPTB", ("male", "20-29")),
        ("male 16month\nnormal", ("male", "00-09")),
        ("female 64days\nnormal", ("female", "00-09")),
        ("male 42\nnormal", ("male", "40-49")),
        ("male 450yrs", ("male", None)),
        ("\n  \n", (None, None)),
        ("\0\0 ���", (None, None)),
    ],
)
def test_readings(text: str, expected: tuple[str | None, str | None]) -> None:
    groups = reading_groups("CHNCXR_0327_1", {"CHNCXR_0327_1": text})
    assert (groups.get("sex"), groups.get("age")) == expected
    assert groups["finding"] == "tb"


def test_shenzhen(tmp_path: Path) -> None:
    found = listing(trees.shenzhen(tmp_path))
    assert (found.layout, found.because) == ("shenzhen", "found CXR_png/CHNCXR_*.png")
    assert (len(found.records), len(found.unlabelled), found.set_aside, found.ignored) == (566, 96, [], 0)
    assert [record.image_id for record in found.unlabelled] == sorted(trees.SHENZHEN_BARE)
    assert {record.mask_uris for record in found.unlabelled} == {()}
    assert counts(found, "finding") == {"normal": 326, "tb": 336}
    first = found.records[0]
    assert first.mask_uris == (str(tmp_path / "mask/CHNCXR_0001_0_mask.png"),)
    assert (first.image_id, first.patient_id) == ("CHNCXR_0001_0", "CHNCXR_0001_0")
    assert dict(first.groups) == {"sex": "male", "age": "20-29", "finding": "normal"}
    odd = {name: dict(by_id(found)[name].groups) for name in trees.ODD_READINGS}
    assert odd == {
        "CHNCXR_0044_0": {"sex": "female", "age": "30-39", "finding": "normal"},
        "CHNCXR_0115_0": {"sex": "male", "age": "00-09", "finding": "normal"},
        "CHNCXR_0202_0": {"sex": "female", "age": "00-09", "finding": "normal"},
        "CHNCXR_0300_0": {"sex": "female", "age": "20-29", "finding": "normal"},
        "CHNCXR_0500_1": {"sex": "male", "age": "20-29", "finding": "tb"},
    }


def test_both_sets_in_one_folder(tmp_path: Path) -> None:
    found = listing(trees.kaggle(tmp_path))
    # 566 + 138 masks; test/ repeats the 96 images that have none.
    assert (found.layout, len(found.records), len(found.unlabelled)) == ("shenzhen", 704, 96)
    assert (found.set_aside, found.ignored) == ([], 0)
    top = tmp_path / "Lung Segmentation"
    record = by_id(found)["MCUCXR_0399_1"]
    assert (record.image_uri, record.mask_uris) == (
        str(top / "CXR_png/MCUCXR_0399_1.png"),
        (str(top / "masks/MCUCXR_0399_1.png"),),
    )
    assert counts(found, "finding") == {"normal": 406, "tb": 394}


def test_shenzhen_damaged(tmp_path: Path) -> None:
    top = trees.shenzhen(tmp_path, count=6) / "ChinaSet_AllFiles"
    names = sorted(path.stem for path in (top / "CXR_png").iterdir())
    (top / f"CXR_png/{names[0]}.png").unlink()
    (tmp_path / "masks").mkdir()
    shutil.copy(tmp_path / f"mask/{names[1]}_mask.png", tmp_path / "masks")
    (top / "CXR_png/notes.txt").write_text("x")
    found = listing(tmp_path)
    assert reasons(found) == {names[0]: "no_image", names[1]: "ambiguous"}
    assert len(found.records) + len(found.unlabelled) == 4
    assert found.ignored == 1


def test_jsrt(tmp_path: Path) -> None:
    found = listing(trees.jsrt(tmp_path))
    assert (found.layout, found.because) == ("jsrt", "found JPCLN001.IMG")
    assert (len(found.records), found.unlabelled, found.set_aside, found.ignored) == (247, [], [], 0)
    assert counts(found, "nodule") == {"yes": 154, "no": 93}
    # Male and female in turn, of 247.
    assert counts(found, "sex") == {"male": 124, "female": 123}
    assert counts(found, "age")["-"] == 1
    records = by_id(found)
    assert dict(records["JPCLN001"].groups) == {"sex": "male", "age": "30-39", "nodule": "yes"}
    # The 155th: 30 + 154 % 50.
    assert dict(records["JPCNN001"].groups) == {"sex": "male", "age": "30-39", "nodule": "no"}
    assert dict(records["JPCLN006"].groups) == {"sex": "female", "nodule": "yes"}
    masks = tmp_path / "scratch/fold1/masks"
    assert records["JPCLN001"].mask_uris == (
        str(masks / "left lung/JPCLN001.gif"),
        str(masks / "right lung/JPCLN001.gif"),
    )
    assert "/fold2/" in records["JPCNN002"].mask_uris[0]
    assert {record.mask_scales for record in found.records} == {(2.0,)}
    assert {record.mask_scales for record in listing(tmp_path, mask_scale=[4, 2]).records} == {(4.0, 2.0)}


def test_jsrt_without_scr(tmp_path: Path) -> None:
    found = listing(trees.jsrt(tmp_path, count=8, masks=False) / "All247images", layout="jsrt")
    assert (found.records, len(found.unlabelled), found.set_aside, found.because) == ([], 8, [], "")
    # The clinical data lies elsewhere.
    assert dict(found.unlabelled[0].groups) == {"nodule": "yes"}


def test_jsrt_with_one_lung(tmp_path: Path) -> None:
    trees.jsrt(tmp_path, count=4)
    (tmp_path / "scratch/fold1/masks/left lung/JPCLN001.gif").unlink()
    found = listing(tmp_path)
    assert reasons(found) == {"JPCLN001": "no_mask"}
    assert found.set_aside[0].detail == (
        "expected left lung/JPCLN001 and right lung/JPCLN001, found All247images/ and right lung/ alone"
    )


def test_jsrt_clinical_data_with_other_line_ends(tmp_path: Path) -> None:
    trees.jsrt(tmp_path, count=247)
    for name in ("CLNDAT_EN.txt", "CNNDAT_EN.TXT"):
        file = tmp_path / "Clinical_Information" / name
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\r" if name.endswith("t") else b""))
    assert counts(listing(tmp_path), "sex") == {"male": 124, "female": 123}


def test_several_sets_are_united(tmp_path: Path) -> None:
    trees.montgomery(tmp_path, count=4)
    trees.shenzhen(tmp_path, count=4)
    both = listing(tmp_path)
    assert both.layout == "montgomery and shenzhen"
    assert counts(both, "set") == {"montgomery": 4, "shenzhen": 4}
    names = [record.image_id for record in both.records]
    assert names == sorted(names)
    assert len(listing(tmp_path, layout="montgomery").records) == 4
    found = listing(tmp_path, layout="shenzhen")
    assert {record.image_id[:3] for record in found.records} == {"CHN"}


@pytest.mark.parametrize("layout", ["montgomery", "shenzhen", "jsrt"])
def test_named_layout_that_is_not_there(layout: str, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    with pytest.raises(
        UserError, match=rf"the layout {layout} expects .* found no file in scans/\. Correct corpus\.root"
    ):
        listing(tmp_path, layout=layout)


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    roots = {
        "montgomery": trees.montgomery(tmp_path / "m", count=3, size=128),
        "shenzhen": trees.shenzhen(tmp_path / "s", count=3, size=128),
        "jsrt": trees.jsrt(tmp_path / "j", count=1, whole=1),
    }
    for name, root in roots.items():
        corpus = CorpusSettings(root=str(root))
        found = listing(root)
        assert found.layout == name
        digests = set()
        for record in found.records:
            sample = read_sample(record, corpus, longer_side=256)
            # Both lungs, on their sides.
            half = sample.mask.shape[1] // 2
            assert sample.mask[:, :half].any()
            assert sample.mask[:, half:].any()
            assert set(np.unique(sample.mask)) == {0, 1}
            # Lungs are darker than what lies around them.
            grey = sample.image[:, :, 0]
            assert grey[sample.mask == 1].mean() < grey[sample.mask == 0].mean()
            digests.add(sample.image_sha256)
        assert len(digests) == len(found.records) > 0


class TestSeveralRoots:
    """Images in one root, and what marks them in another."""

    @pytest.mark.parametrize("table", ["", "OriginalResolution/ChestX-Ray8.csv"])
    def test_chexmask(self, table: str, tmp_path: Path) -> None:
        images, masks = trees.chexmask(tmp_path)
        found = list_corpus(CorpusSettings(root=[str(images), str(masks / table)], min_quality=0.7))
        assert found.layout == "pairs"
        # Of 30 images, three have a mask of low quality. The masks of CheXpert have no images here.
        assert len(found.records) == 27
        assert len(found.unlabelled) == 3
        assert found.set_aside == []
        assert len({record.patient_id for record in found.records}) == 10
        record = by_id(found)["00000005_001"]
        # The lists of the NIH give the split, and every fifth patient is one to test.
        assert (record.patient_id, record.split) == ("5", "test")
        assert record.groups["View Position"] == "PA"
        sample = read_sample(record, found.corpus, longer_side=1024)
        assert sample.mask.sum() == trees.chest(13, 64)[1].astype(bool).sum()
        assert np.array_equal(sample.mask, trees.chest(13, 64)[1].astype(bool))

    def test_tables_of_two_sizes(self, tmp_path: Path) -> None:
        images, masks = trees.chexmask(tmp_path, count=3)
        shutil.copytree(masks / "OriginalResolution", masks / "Preprocessed")
        with pytest.raises(UserError, match=r"both have run lengths for \S*00000001_000.png.*corpus.root IMAGES"):
            list_corpus(CorpusSettings(root=[str(images), str(masks)]))

    def test_pictures_of_masks(self, tmp_path: Path) -> None:
        drawn = png(np.full((64, 64), 60, np.uint8))
        for name in ("a", "b", "c"):
            for folder in ("xrays", "lung_masks"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / f"{name}.png").write_bytes(drawn)
        found = list_corpus(CorpusSettings(root=[str(tmp_path / "xrays"), str(tmp_path / "lung_masks")]))
        assert [(record.image_id, record.masks[0].uri) for record in found.records] == [
            (name, str(tmp_path / "lung_masks" / f"{name}.png")) for name in ("a", "b", "c")
        ]
        assert "roots: lung_masks, xrays" in found.recognition[0] or "roots: xrays, lung_masks" in found.recognition[0]

    def test_beside_a_corpus_of_its_own(self, tmp_path: Path) -> None:
        images, masks = trees.chexmask(tmp_path, count=6)
        trees.montgomery(tmp_path / "ours", count=4)
        roots = [str(images), str(masks), str(tmp_path / "ours")]
        found = list_corpus(CorpusSettings(root=roots))
        assert Counter(record.groups["root"] for record in found.records) == {"nih+chexmask": 6, "ours": 4}
        # The files of all roots are watched, in the order in which they are given.
        assert list(found.files) == files_state(CorpusSettings(root=roots))

    def test_a_table_of_patients(self, tmp_path: Path) -> None:
        names = [f"x{number}" for number in range(4)]
        trees.fill(tmp_path, *(f"{kind}/{name}.png" for kind in ("xrays", "lung_masks") for name in names))
        (tmp_path / "people.csv").write_text(
            "image_id,patient_id\n" + "".join(f"{name},p{name[1:]}7\n" for name in names)
        )
        roots = [str(tmp_path / name) for name in ("xrays", "lung_masks", "people.csv")]
        found = list_corpus(CorpusSettings(root=roots))
        assert [record.patient_id for record in found.records] == ["p07", "p17", "p27", "p37"]

    def test_a_stray_mask_among_images(self, tmp_path: Path) -> None:
        names = [f"x{number}" for number in range(20)]
        trees.fill(tmp_path, *(f"{kind}/{name}.png" for kind in ("xrays", "lung_masks") for name in names))
        trees.fill(tmp_path, "xrays/x3_mask.png")
        found = list_corpus(CorpusSettings(root=[str(tmp_path / name) for name in ("xrays", "lung_masks")]))
        assert len(found.records) >= 19

    def test_folders_where_a_manifest_is_asked_for(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="the layout manifest expects"):
            list_corpus(CorpusSettings(root=[str(tmp_path / name) for name in "ab"], layout="manifest"))

    def test_none_of_which_has_masks(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            trees.chexmask(tmp_path / name, count=3, first=1 if name == "one" else 50)
        with pytest.raises(UserError, match=r"6 images may be used.*nothing is named as a mask"):
            list_corpus(CorpusSettings(root=[str(tmp_path / "one/nih"), str(tmp_path / "two/nih")]))


def test_covid_qu_ex(tmp_path: Path) -> None:
    top = trees.covid_qu_ex(tmp_path)
    lungs = listing(top / "Lung Segmentation Data")
    assert len(lungs.records) == 36
    assert Counter(record.split for record in lungs.records) == {"train": 12, "val": 12, "test": 12}
    assert counts(lungs, "folder") == {"COVID-19": 12, "Non-COVID": 12, "Normal": 12}
    # Folders of classes within those of splits are no patients.
    assert len({record.patient_id for record in lungs.records}) == 36
    infections = listing(top / "Infection Segmentation Data", class_names=["infection"], empty_masks="keep")
    assert len(infections.records) == 9
    assert all("infection masks" in record.masks[0].uri for record in infections.records)
    whole = listing(top)
    assert all("lung masks" in source.uri for record in whole.records for source in record.masks)
    assert counts(whole, "folder") == {"Infection Segmentation Data": 9, "Lung Segmentation Data": 36}


@pytest.mark.parametrize(
    "names", [("train.txt", "val.txt", "trainval.txt", "test.txt"), ("train_list.txt", "testing.txt")]
)
def test_splits_from_lists(names: tuple[str, ...], tmp_path: Path) -> None:
    ids = [f"i{number}" for number in range(8)]
    trees.fill(
        tmp_path, *(f"JPEGImages/{name}.jpg" for name in ids), *(f"SegmentationClass/{name}.png" for name in ids)
    )
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    members = {"train.txt": ids[:4], "val.txt": ids[4:6], "trainval.txt": ids[:6], "test.txt": ids[6:]}
    members |= {"train_list.txt": [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in ids[:6]]}
    members |= {"testing.txt": [f"{name}.jpg" for name in ids[6:]]}
    for name in names:
        (lists / name).write_text("\n".join(members[name]) + "\n")
    (tmp_path / "notes_on_training.txt").write_text("i0 is a scan of poor quality\n")
    (tmp_path / "classes.txt").write_text("lung\n")
    splits = {record.image_id: record.split for record in listing(tmp_path).records}
    expected = ["train"] * 4 + (["val"] * 2 if "val.txt" in names else ["train"] * 2) + ["test"] * 2
    assert [splits[name] for name in ids] == expected
