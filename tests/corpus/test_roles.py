"""What the names of folders say."""

from __future__ import annotations

import pytest

from lungseg_ray.corpus.layouts.roles import Roles, read_words


@pytest.mark.parametrize(
    "name",
    [
        *(
            "images",
            "Images",
            "IMAGES",
            "image",
            "imgs",
            "img_dir",
            "png_images",
            "PNGImages",
            "JPEGImages",
            "imagesTr",
        ),
        *("train-images", "image_train", "CXR_png", "chest-xrays", "dicom-images-train", "input", "Scans", "raw"),
    ],
)
def test_folders_of_images(name: str) -> None:
    assert read_words(name).role == "image"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "masks",
            "Masks",
            "MASKS",
            "mask",
            "labels",
            "labelsTr",
            "label_train",
            "annotations",
            "ann_dir",
            "png_masks",
        ),
        *("SegmentationClass", "segmentations", "gt", "ground_truth", "GroundTruth", "lung masks", "leftMask"),
        *("lungmasks", "ManualMask", "image_masks", "roi"),
    ],
)
def test_folders_of_masks(name: str) -> None:
    assert read_words(name).role == "mask"


@pytest.mark.parametrize("name", ["Normal", "patient00001", "chest_xray", "images and masks", "p10", ""])
def test_other_folders(name: str) -> None:
    words = read_words(name)
    assert words.role is None or words.weak


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("imagesTr", "train"), ("val", "val"), ("Valid", "val")),
        *(("validation", "val"), ("dev", "val"), ("TEST", "test"), ("testing", "test"), ("images_test", "test")),
        *(("Normal", None), ("trainer", None), ("contest", None)),
    ],
)
def test_splits(name: str, split: str | None) -> None:
    assert read_words(name).split == split


def test_the_deepest_folder_says_what_a_file_is() -> None:
    roles = Roles(["Lung Segmentation/masks", "Lung Segmentation/CXR_png", "Lung Segmentation/test"])
    assert roles.parse("Lung Segmentation/masks").role == "mask"
    assert roles.parse("Lung Segmentation/CXR_png").role == "image"
    # A folder of both is a wrapping, whatever its name.
    assert roles.parse("Lung Segmentation/test").role is None


def test_words_of_corpora_give_way() -> None:
    roles = Roles(["images/CXR_png", "masks/CXR_png"])
    assert [roles.parse(f"{folder}/CXR_png").role for folder in ("images", "masks")] == ["image", "mask"]


def test_what_else_a_path_says() -> None:
    roles = Roles(["set/Train/COVID-19/images", "set/Train/COVID-19/lung masks/left"])
    mask = roles.parse("set/Train/COVID-19/lung masks/left")
    assert (mask.role, mask.split, mask.side, mask.kind) == ("mask", "train", "left", ("lung",))
    assert mask.rest == ("set", "Train", "COVID-19") == roles.parse("set/Train/COVID-19/images").rest
    assert roles.parse("").role is None
