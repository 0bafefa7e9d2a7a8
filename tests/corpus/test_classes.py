"""Structures that masks distinguish: by files, by names in annotations, by values or by colours."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.errors import BadFileError, UserError
from tests.corpus.kinds import png
from tests.corpus.trees import chest, listing

Pixels = NDArray[np.uint8]
LEFT: Pixels = cv2.ellipse(np.zeros((64, 64), np.uint8), (18, 32), (10, 20), 0, 0, 360, 1, -1)
RIGHT: Pixels = cv2.ellipse(np.zeros((64, 64), np.uint8), (46, 30), (9, 18), 0, 0, 360, 1, -1)
LABELS: Pixels = LEFT + 2 * RIGHT
BOTH: Pixels = LEFT + RIGHT
HEART: Pixels = cv2.rectangle(np.zeros((64, 64), np.uint8), (24, 36), (40, 52), 1, -1)


def write(root: Path, **masks: Pixels) -> None:
    """Writes four images, and for each folder a mask of each; "__" in its name stands for "/", and "_" for a blank."""
    for number in range(4):
        image = np.full((64, 64), 60 + number, np.uint8) + 100 * (LABELS > 0)
        for folder, pixels in {"images": image.astype(np.uint8), **masks}.items():
            place = root / folder.replace("__", "/").replace("_", " ")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(png(pixels))


def coco(*names: str, polygons: list[list[int]]) -> dict[str, object]:
    """A COCO file of the four images, each with all of the polygons, one for each name."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(4)],
        "categories": [{"id": at, "name": name} for at, name in enumerate(names, start=1)],
        "annotations": [
            {"id": 10 * n + at, "image_id": n, "category_id": at, "segmentation": [polygon]}
            for n in range(4)
            for at, polygon in enumerate(polygons, start=1)
        ],
    }


def mask_of(found: Listing) -> Pixels:
    assert len(found.records) == 4
    assert found.set_aside == []
    return read_sample(found.records[0], found.corpus, longer_side=512).mask


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write(tmp_path, masks__left_lung=LEFT * np.uint8(255), masks__right_lung=RIGHT * np.uint8(255))
        return tmp_path

    def test_they_are_united(self, root: Path) -> None:
        assert np.array_equal(mask_of(listing(root)), (LABELS > 0).astype(np.uint8))

    def test_each_is_a_class(self, root: Path) -> None:
        found = listing(root, unite=False)
        assert (found.corpus.classes, found.corpus.class_names) == (3, ["left lung", "right lung"])
        assert "classes: 1 left lung, 2 right lung (corpus.unite, corpus.class_names)" in found.recognition
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.mirrored == ((1, 2),)

    @pytest.mark.parametrize("names", [["right lung", "left lung"], ["right", "left"]])
    def test_classes_of_the_user(self, root: Path, names: list[str]) -> None:
        found = listing(root, classes=3, class_names=names)
        assert np.array_equal(mask_of(found), (2 * LEFT + RIGHT).astype(np.uint8))
        assert found.warnings == []

    def test_marks_of_another_value(self, tmp_path: Path) -> None:
        write(tmp_path, masks__left=LEFT * np.uint8(38), masks__right=RIGHT * np.uint8(38))
        found = listing(tmp_path, unite=False)
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.class_names == ["left", "right"]


class TestValues:
    def test_they_are_asked_for(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        (warning,) = listing(tmp_path).warnings
        assert warning.endswith("or --corpus.unite true if they are one.")

    def test_they_are_united(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        assert np.array_equal(mask_of(listing(tmp_path, unite=True)), (LABELS > 0).astype(np.uint8))

    def test_each_is_a_class(self, tmp_path: Path) -> None:
        write(tmp_path, masks=LABELS * np.uint8(3))
        found = listing(tmp_path, unite=False)
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.class_names == ["structure 3", "structure 6"]


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "left lung": 1, "right lung": 2}, {"0": "background", "1": "left lung", "2": "right lung"}],
)
def test_names_of_nnunet(labels: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, labelsTr=LABELS)
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "numTraining": 4}))
    assert np.array_equal(mask_of(listing(tmp_path)), (LABELS > 0).astype(np.uint8))
    found = listing(tmp_path, unite=False)
    assert np.array_equal(mask_of(found), LABELS)
    assert found.corpus.class_names == ["left lung", "right lung"]
    named = listing(tmp_path, classes=3, class_names=["right lung", "left lung"])
    assert np.array_equal(mask_of(named), (2 * LEFT + RIGHT).astype(np.uint8))
    with pytest.raises(UserError, match=r"expected the structures clavicle, heart of .*, found 'left lung'"):
        listing(tmp_path, classes=3, class_names=["clavicle", "heart"])


def test_colours_of_cvat(tmp_path: Path) -> None:
    colours = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    write(tmp_path, SegmentationClass=colours[LABELS][:, :, ::-1])
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nlung:250,50,83::\nheart:51,221,255::\n"
    )
    found = listing(tmp_path)
    assert "labels: labelmap.txt names 3 values: #000000 background, #fa3253 lung, #33ddff heart" in found.recognition
    assert np.array_equal(mask_of(found), LEFT)
    both = listing(tmp_path, unite=False)
    assert both.corpus.class_names == ["heart", "lung"]
    assert np.array_equal(mask_of(both), (2 * LEFT + RIGHT).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("masks/_classes.csv", "Pixel Value, Class\n0, unlabeled\n1, lung\n2, heart\n"),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\nlung,1,1,1\nheart,2,2,2\n"),
    ],
)
def test_tables_of_values(name: str, text: str, tmp_path: Path) -> None:
    """As Roboflow writes them, and as sets like CamVid have them."""
    coloured = name == "class_dict.csv"
    write(tmp_path, masks=np.stack([LABELS] * 3, 2) if coloured else LABELS)
    (tmp_path / name).write_text(text)
    assert np.array_equal(mask_of(listing(tmp_path)), LEFT)
    found = listing(tmp_path, unite=False)
    assert found.corpus.class_names == ["heart", "lung"]
    assert np.array_equal(mask_of(found), (2 * LEFT + RIGHT).astype(np.uint8))
    assert not any("is not used" in line for line in found.warnings)


def test_names_of_other_values_are_not_used(tmp_path: Path) -> None:
    """A labelmap of colours beside masks of 0 and 255."""
    write(tmp_path, masks=LEFT * np.uint8(255))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nlung:250,50,83::\n")
    assert np.array_equal(mask_of(listing(tmp_path)), LEFT)


class TestOtherStructures:
    """Masks of organs that are not asked for, by the names of folders, files and annotations."""

    def test_folders_below_that_of_masks(self, tmp_path: Path) -> None:
        write(tmp_path, masks__left=LEFT, masks__right=RIGHT, masks__heart=HEART)
        assert np.array_equal(mask_of(listing(tmp_path)), (LABELS > 0).astype(np.uint8))

    def test_one_folder_for_each_organ(self, tmp_path: Path) -> None:
        write(tmp_path, masks__lung=BOTH, masks__heart=HEART)
        assert np.array_equal(mask_of(listing(tmp_path)), BOTH)

    def test_each_folder_is_a_class(self, tmp_path: Path) -> None:
        write(tmp_path, masks__left_lung=LEFT, masks__right_lung=RIGHT, masks__left_clavicle=HEART)
        found = listing(tmp_path, unite=False)
        assert found.corpus.class_names == ["left clavicle", "left lung", "right lung"]
        assert {*np.unique(mask_of(found))} == {0, 1, 2, 3}

    def test_files_of_which_one_has_no_word(self, tmp_path: Path) -> None:
        write(tmp_path)
        for name, pixels in (("mask", RIGHT), ("heart_mask", HEART)):
            for number in range(4):
                (tmp_path / "masks").mkdir(exist_ok=True)
                (tmp_path / "masks" / f"{number}_{name}.png").write_bytes(png(pixels))
        with pytest.raises(UserError, match=r"do not all say what they mark, such as 0_heart_mask\.png, 0_mask\.png"):
            listing(tmp_path, unite=False)

    def test_a_corpus_of_another_organ(self, tmp_path: Path) -> None:
        write(tmp_path, heart_masks=HEART)
        assert listing(tmp_path).warnings == [
            "The masks are named heart, and count as lung. If they mark something else, name it: "
            "--corpus.class_names 'heart'"
        ]
        assert listing(tmp_path, class_names=["heart"]).warnings == []

    def test_a_word_in_the_name_of_label_maps(self, tmp_path: Path) -> None:
        """The folder of label maps may be named by a structure: the values say more than the name."""
        write(tmp_path, corrected_lung_masks=LABELS)
        found = listing(tmp_path, classes=3, class_names=["left lung", "right lung"])
        assert np.array_equal(mask_of(found), LABELS)
        heart_and_lung = listing(
            tmp_path, classes=3, class_names=["heart", "lung"], mask_values={"0": 0, "1": 1, "2": 2}
        )
        assert np.array_equal(mask_of(heart_and_lung), LABELS)

    @pytest.mark.parametrize("place", ["masks", "masks 1"])
    def test_annotators(self, place: str, tmp_path: Path) -> None:
        folders = {f"masks__annotator_{number}": LEFT for number in (1, 2)} if place == "masks" else {}
        write(tmp_path, **folders)
        for number in range(4):
            for rater in (1, 2) if not folders else ():
                (tmp_path / place).mkdir(exist_ok=True)
                (tmp_path / place / f"{number}_mask_rater{rater}.png").write_bytes(png(LEFT))
        with pytest.raises(UserError, match=r"4 of 4 images have several masks whose names do not say.*annotators"):
            listing(tmp_path)

    def test_numbers_of_masks_that_overlap(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "masks").mkdir()
        for number in range(4):
            for part, pixels in enumerate((LEFT, cv2.erode(LEFT, np.ones((3, 3), np.uint8)))):
                (tmp_path / "masks" / f"{number}_mask_{part}.png").write_bytes(png(pixels))
        (warning,) = listing(tmp_path).warnings
        assert warning.startswith("Of 4 images looked at that have several masks, 4 have two that mark the same area")

    def test_annotations_of_several(self, tmp_path: Path) -> None:
        write(tmp_path)
        polygon = [10, 10, 30, 10, 30, 50, 10, 50]
        (tmp_path / "a.json").write_text(
            json.dumps(coco("lungs", "vertebrae C7", polygons=[polygon, [0, 0, 9, 0, 9, 9]]))
        )
        found = listing(tmp_path)
        assert (
            "structures: lungs; vertebrae C7 count as background (corpus.structures, corpus.unite)" in found.recognition
        )
        assert int(mask_of(found).sum()) == int(mask_of(listing(tmp_path, structures=["lungs"])).sum())
        assert int(mask_of(listing(tmp_path, unite=True)).sum()) > int(mask_of(found).sum())

    def test_annotations_of_nothing_that_counts(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "a.json").write_text(json.dumps(coco("heart", polygons=[[10, 10, 30, 10, 30, 50]])))
        with pytest.raises(UserError, match="the masks mark heart, and the class is lung"):
            listing(tmp_path)

    @pytest.mark.parametrize("names", [["left-lung", "right-lung"], ["Left Lung", "left_lung", "right lung"]])
    def test_spellings(self, names: list[str], tmp_path: Path) -> None:
        write(tmp_path)
        polygons = [[10 * n, 10, 10 * n + 9, 10, 10 * n + 9, 50, 10 * n, 50] for n in range(1, len(names) + 1)]
        (tmp_path / "a.json").write_text(json.dumps(coco(*names, polygons=polygons)))
        found = listing(tmp_path, unite=False)
        assert len(found.corpus.class_names) == 2
        assert {*np.unique(mask_of(found))} == {0, 1, 2}

    def test_each_image_has_one_of_two(self, tmp_path: Path) -> None:
        """A mask of the heart is no mask of the lungs, also where an image has no other."""
        write(tmp_path)
        for number, (folder, pixels) in enumerate((("lung", BOTH), ("lung", BOTH), ("heart", HEART), ("lung", BOTH))):
            (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks" / folder / f"{number}.png").write_bytes(png(pixels))
        found = listing(tmp_path)
        assert [record.image_id for record in found.records] == ["0", "1", "3"]
        assert [(one.image_id, one.reason) for one in found.set_aside] == [("2", "no_mask")]
        assert "without the masks of heart" in found.recognition[0]

    def test_folders_of_hospitals(self, tmp_path: Path) -> None:
        """Masks lie in folders of hospitals, and their images in one: the names say nothing of what is marked."""
        write(tmp_path)
        for number, folder in enumerate(("North", "North", "South", "West")):
            (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks" / folder / f"{number}.png").write_bytes(png(BOTH))
        for unite in (None, True, False):
            found = listing(tmp_path, unite=unite)
            assert np.array_equal(mask_of(found), BOTH)
            assert found.corpus.class_names == ["lung"]

    def test_partly_annotated(self, tmp_path: Path) -> None:
        """With several classes, each file marks the class of its name, also where no image has two files."""
        write(tmp_path)
        for number in range(4):
            folder, pixels = (("heart", HEART), ("lung", BOTH))[number % 2]
            (tmp_path / "masks" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "masks" / folder / f"{number}.png").write_bytes(png(pixels))
        found = listing(tmp_path, classes=3, class_names=["lung", "heart"])
        masks = [read_sample(record, found.corpus, longer_side=64).mask for record in found.records]
        assert [int(mask.max()) for mask in masks] == [2, 1, 2, 1]

    def test_a_kind_without_a_word_beside_an_unknown_one(self, tmp_path: Path) -> None:
        write(tmp_path, masks=BOTH, masks_corrected=BOTH)
        with pytest.raises(UserError, match=r"several kinds, found\n  without a word: 4 images\n  corrected: 4 images"):
            listing(tmp_path)

    @pytest.mark.parametrize("names", [("Lunge", "Herz"), ("\u80ba", "\u5fc3\u810f"), ("thorax", "hilum")])
    def test_names_in_other_languages(self, names: tuple[str, str], tmp_path: Path) -> None:
        write(tmp_path)
        polygons = [[10, 10, 19, 10, 19, 50, 10, 50], [30, 30, 40, 30, 40, 40, 30, 40]]
        (tmp_path / "a.json").write_text(json.dumps(coco(*names, polygons=polygons)))
        with pytest.raises(UserError, match="and the class is lung"):
            listing(tmp_path)
        found = listing(tmp_path, structures=[names[0]])
        assert int(mask_of(found).sum()) == 10 * 41

    def test_sides_in_other_languages(self, tmp_path: Path) -> None:
        write(tmp_path, masks__links=LEFT, masks__rechts=RIGHT)
        assert np.array_equal(mask_of(listing(tmp_path)), BOTH)


class TestNamesOfValues:
    def test_what_is_ignored(self, tmp_path: Path) -> None:
        write(tmp_path, labelsTr=LABELS)
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lung": 1, "ignore": 2}}))
        assert {*np.unique(mask_of(listing(tmp_path)))} == {0, 1, 255}
        assert listing(tmp_path, unite=False).corpus.class_names == ["lung"]

    def test_a_setting_wins(self, tmp_path: Path) -> None:
        write(tmp_path, labelsTr=LABELS)
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "heart", "\u00b2": "x"}}))
        found = listing(
            tmp_path, classes=3, class_names=["left lung", "right lung"], mask_values={"0": 0, "1": 1, "2": 2}
        )
        assert np.array_equal(mask_of(found), LABELS)

    def test_two_files_that_differ(self, tmp_path: Path) -> None:
        for folder, name in (("Dataset001_Heart", "heart"), ("Dataset002_Lung", "lung")):
            write(tmp_path / folder, labelsTr=LEFT)
            (tmp_path / folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, name: 1}}))
        with pytest.raises(UserError, match=r"names the value 1 of masks 'heart', and .*Lung/dataset.json names"):
            listing(tmp_path)

    def test_roots_that_differ(self, tmp_path: Path) -> None:
        for folder, name in (("a", "heart"), ("b", "lung"), ("c", "")):
            write(tmp_path / folder, labelsTr=LEFT)
            if name:
                labels = {"labels": {"background": 0, name: 1}}
                (tmp_path / folder / "dataset.json").write_text(json.dumps(labels))
        roots = [str(tmp_path / name) for name in "abc"]
        with pytest.raises(UserError, match="a names the value 1 of masks 'heart', and b names it 'lung'"):
            list_corpus(CorpusSettings(root=roots[:2]))
        with pytest.raises(UserError, match="A file in b names the values of its masks, and none does in c"):
            list_corpus(CorpusSettings(root=roots[1:]))
        assert len(list_corpus(CorpusSettings(root=roots, mask_values={0: 0, 1: 1})).records) == 12


class TestUncommonValues:
    def test_a_border(self, tmp_path: Path) -> None:
        """PASCAL VOC marks the border between structures with 255."""
        border = cv2.dilate(LEFT, np.ones((3, 3), np.uint8)) - LEFT
        write(tmp_path, SegmentationClass=LEFT + border * np.uint8(255))
        assert np.array_equal(mask_of(listing(tmp_path)), LEFT + border * np.uint8(255))

    def test_a_stray_pixel_is_no_structure_with_a_border(self, tmp_path: Path) -> None:
        stray = LEFT * np.uint8(255)
        stray[0, 0] = 1
        write(tmp_path, masks=stray)
        found = listing(tmp_path)
        assert int(mask_of(found).sum()) == int(LEFT.sum()) + 1
        (warning,) = found.warnings
        assert warning.startswith("4 masks of 4 looked at have the value 255 and small values in one file.")

    def test_photographs_are_no_masks(self, tmp_path: Path) -> None:
        for number in range(4):
            for folder in ("images", "masks"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / f"{number}.png").write_bytes(png(chest(number, 64)[0]))
        found = listing(tmp_path)
        assert found.corpus.mask_threshold is None
        assert found.warnings[0].startswith("The masks look like their images")

    def test_files_of_two_kinds(self, tmp_path: Path) -> None:
        """Some masks have 0 and 1, and others 0 and 255: 255 is no border where it is alone."""
        write(tmp_path, masks=LEFT)
        (tmp_path / "masks" / "0.png").write_bytes(png(LEFT * np.uint8(255)))
        assert np.array_equal(mask_of(listing(tmp_path)), LEFT)

    @pytest.mark.parametrize("second", [128, 200])
    def test_any_values_are_united(self, second: int, tmp_path: Path) -> None:
        write(tmp_path, masks=LEFT * np.uint8(second) + RIGHT * np.uint8(255))
        assert np.array_equal(mask_of(listing(tmp_path, unite=True)), BOTH)
        found = listing(tmp_path, unite=False)
        assert np.array_equal(mask_of(found), LABELS)
        assert found.corpus.class_names == [f"structure {second}", "structure 255"]

    def test_colours_are_united(self, tmp_path: Path) -> None:
        coloured = np.stack([LEFT * np.uint8(255), RIGHT * np.uint8(255), LEFT * 0], axis=-1)
        write(tmp_path, masks=coloured)
        assert np.array_equal(mask_of(listing(tmp_path, unite=True)), BOTH)
        assert {*np.unique(mask_of(listing(tmp_path, unite=False)))} == {0, 1, 2}

    @pytest.mark.parametrize("value", [100, 128, 255])
    def test_lossy_masks_of_any_value(self, value: int, tmp_path: Path) -> None:
        big = cv2.resize(BOTH, (256, 256), interpolation=cv2.INTER_NEAREST)
        for number in range(4):
            for folder, pixels in (("images", big * 90 + number), ("masks", big * np.uint8(value))):
                (tmp_path / folder).mkdir(exist_ok=True)
                coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
                (tmp_path / folder / f"{number}.jpg").write_bytes(coded.tobytes())
        found = listing(tmp_path)
        mask = mask_of(found)
        assert (mask != big).mean() < 0.01

    def test_smooth_arrays_up_to_255(self, tmp_path: Path) -> None:
        smooth = cv2.GaussianBlur(BOTH.astype(np.float32) * 255, (5, 5), 1)
        write(tmp_path)
        (tmp_path / "masks").mkdir()
        for number in range(4):
            np.save(tmp_path / "masks" / f"{number}.npy", smooth)
        mask = mask_of(listing(tmp_path))
        assert np.array_equal(mask, (smooth >= 127.5).astype(np.uint8))

    def test_logits_are_no_masks(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "masks").mkdir()
        for number in range(4):
            np.save(tmp_path / "masks" / f"{number}.npy", BOTH.astype(np.float32) * 7.3 - 4)
        found = listing(tmp_path)
        assert found.corpus.mask_threshold is None
        assert found.warnings[0].startswith("The masks have values below 0")

    def test_a_border_is_in_the_proposal(self, tmp_path: Path) -> None:
        border = cv2.dilate(BOTH, np.ones((3, 3), np.uint8)) - BOTH
        write(tmp_path, SegmentationClass=LABELS + border * np.uint8(255))
        (warning,) = listing(tmp_path).warnings
        assert '{"0": 0, "1": 1, "2": 1, "255": "ignore"}' in warning

    def test_masks_of_another_shape_are_stretched_if_the_user_says_so(self, tmp_path: Path) -> None:
        write(tmp_path, masks=cv2.resize(BOTH, (96, 48), interpolation=cv2.INTER_NEAREST))
        with pytest.raises(BadFileError, match="or stretch if they show the same"):
            mask_of(listing(tmp_path))
        assert (mask_of(listing(tmp_path, mask_scale="stretch")) != BOTH).mean() < 0.05

    def test_one_odd_file_among_many(self, tmp_path: Path) -> None:
        write(tmp_path, masks=BOTH * np.uint8(255))
        (tmp_path / "masks" / "3.png").write_bytes(png(chest(3, 64)[0]))
        found = listing(tmp_path)
        assert found.corpus.mask_threshold is None
        assert found.warnings[0].startswith("1 of 4 masks looked at have other values than the rest")
        with pytest.raises(BadFileError, match="found also"):
            read_sample(found.records[3], found.corpus, longer_side=64)

    def test_labels_of_0_and_1_beside_smooth_masks(self, tmp_path: Path) -> None:
        smooth = cv2.GaussianBlur(BOTH * np.uint8(255), (5, 5), 1)
        write(tmp_path, masks=smooth)
        (tmp_path / "masks" / "0.png").write_bytes(png(BOTH))
        found = listing(tmp_path)
        assert found.corpus.mask_threshold == 0.5
        masks = [read_sample(record, found.corpus, longer_side=64).mask for record in found.records]
        assert np.array_equal(masks[0], BOTH)
        assert np.array_equal(masks[1], (smooth >= 127.5).astype(np.uint8))
