"""Annotations that are no images, with the mask that each of them describes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.annotations.documents import read_annotation, read_collection
from lungseg_ray.corpus.annotations.drawing import Drawing, Shape
from lungseg_ray.corpus.annotations.runs import bounds, is_relative
from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.structures import structure_label
from lungseg_ray.errors import BadFileError, UserError
from tests.corpus.kinds import png
from tests.corpus.trees import listing

HEIGHT, WIDTH = 60, 48
LEFT: NDArray[np.uint8] = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (14, 30), (8, 20), 0, 0, 360, 1, -1)
RIGHT: NDArray[np.uint8] = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (34, 28), (7, 18), 0, 0, 360, 1, -1)
BOTH = LEFT | RIGHT
HEART = cv2.rectangle(np.zeros_like(LEFT), (10, 34), (40, 44), 1, -1)


def ring(mask: NDArray[np.uint8]) -> list[list[float]]:
    (contour,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points: list[list[float]] = contour[:, 0, :].astype(float).tolist()
    return points


def flat(mask: NDArray[np.uint8]) -> list[float]:
    return [value for point in ring(mask) for value in point]


def runs(mask: NDArray[np.uint8], *, columns: bool, relative: bool) -> str:
    ordered = np.concatenate([[0], mask.T.ravel() if columns else mask.ravel(), [0]]).astype(int)
    edges = np.flatnonzero(np.diff(ordered))
    words, last = [], 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        words += [start - last if relative else start + 1, end - start]
        last = end
    return " ".join(map(str, words))


def images(root: Path, folder: str, count: int = 3) -> None:
    (root / folder).mkdir(parents=True)
    for number in range(count):
        (root / folder / f"x{number}.png").write_bytes(png(np.full((HEIGHT, WIDTH), 40 + number, np.uint8) + BOTH * 90))


def assert_masks(found: Listing, wanted: NDArray[np.uint8], *, images: int = 3, dice: float = 1.0) -> None:
    assert len(found.records) == images
    for record in found.records:
        mask = read_sample(record, found.corpus, longer_side=1024).mask
        assert mask.shape == wanted.shape
        overlap = 2 * int(((mask > 0) & (wanted > 0)).sum()) / int((mask > 0).sum() + (wanted > 0).sum())
        assert overlap >= dice


def coco_file(*areas: tuple[str, Any]) -> str:
    names = sorted({name for name, _ in areas})
    return json.dumps(
        {
            "images": [
                {"id": 7 + number, "file_name": f"x{number}.png", "height": HEIGHT, "width": WIDTH}
                for number in range(3)
            ],
            "categories": [{"id": names.index(name) + 1, "name": name} for name in names],
            "annotations": [
                {"id": 100 * image + number, "image_id": 7 + image, "category_id": names.index(name) + 1, **area}
                for image in range(3)
                for number, (name, area) in enumerate(areas)
            ],
        }
    )


def compressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask))
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}}


def uncompressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel()]).astype(int)))
    counts = np.diff([0, *edges, mask.size]).tolist()
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}, "iscrowd": 1}


class TestCoco:
    @pytest.mark.parametrize(
        "areas",
        [
            (("lung", {"segmentation": [flat(LEFT), flat(RIGHT)]}),),
            (("left lung", {"segmentation": [flat(LEFT)]}), ("right lung", {"segmentation": [flat(RIGHT)]})),
            (("lung", compressed(BOTH)),),
            (("lung", uncompressed(BOTH)),),
            # A heart is no lung.
            (("lung", compressed(BOTH)), ("heart", compressed(np.ones_like(BOTH)))),
        ],
    )
    @pytest.mark.parametrize("place", ["annotations/instances_default.json", "images/_annotations.coco.json"])
    def test_shapes(self, areas: tuple[tuple[str, Any], ...], place: str, tmp_path: Path) -> None:
        images(tmp_path, "images")
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(coco_file(*areas))
        found = listing(tmp_path)
        assert_masks(found, BOTH)
        assert f"{place} has shapes for 3 images" in found.recognition[0]

    def test_classes_by_name(self, tmp_path: Path) -> None:
        images(tmp_path, "images")
        areas = (("left lung", compressed(LEFT)), ("right lung", compressed(RIGHT)))
        (tmp_path / "a.json").write_text(coco_file(*areas))
        found = listing(tmp_path, classes=3, class_names=["right lung", "left lung"])
        sample = read_sample(found.records[0], found.corpus, longer_side=1024)
        assert np.array_equal(sample.mask, np.where(RIGHT, 1, np.where(LEFT, 2, 0)))
        other = listing(tmp_path, classes=3, class_names=["right lung", "heart"])
        with pytest.raises(BadFileError, match=r"structures right lung, heart of .*, found 'left lung'"):
            read_sample(other.records[0], other.corpus, longer_side=1024)

    def test_an_image_that_nobody_annotated_is_unlabelled(self, tmp_path: Path) -> None:
        images(tmp_path, "images", 4)
        (tmp_path / "a.json").write_text(coco_file(("lung", compressed(BOTH))))
        found = listing(tmp_path)
        assert (len(found.records), len(found.unlabelled), found.set_aside) == (3, 1, [])

    def test_splits_by_the_names_of_files(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            images(tmp_path, split)
            (tmp_path / f"instances_{split}.json").write_text(
                coco_file(("lung", compressed(BOTH))).replace('"x', f'"{split}/x')
            )
        assert [record.split for record in listing(tmp_path).records] == ["train"] * 3 + ["val"] * 3

    def test_another_json_file_is_none(self, tmp_path: Path) -> None:
        assert read_collection(b'{"a": 1}', ".json") is None
        with pytest.raises(BadFileError, match="damaged"):
            read_collection(b'{"images": [1], "annotations": []}', ".json")


class TestOneFileForEachImage:
    def test_labelme(self, tmp_path: Path) -> None:
        images(tmp_path, "scans")
        shapes = [{"label": "lung", "shape_type": "polygon", "points": ring(side)} for side in (LEFT, RIGHT)]
        text = json.dumps({"shapes": shapes, "imagePath": "x", "imageHeight": HEIGHT, "imageWidth": WIDTH})
        for number in range(3):
            (tmp_path / f"scans/x{number}.json").write_text(text)
        assert_masks(listing(tmp_path), BOTH)

    def test_labelme_rectangle(self) -> None:
        shape = {"label": "lung", "shape_type": "rectangle", "points": [[2, 3], [5, 7]]}
        drawing = read_annotation(json.dumps({"shapes": [shape], "imageHeight": 9, "imageWidth": 8}).encode())
        mask = drawing.rasterise(lambda name: 1, height=9, width=8)
        assert mask[3:8, 2:6].all()
        assert mask.sum() == 20

    def test_darwin_with_a_hole(self, tmp_path: Path) -> None:
        images(tmp_path, "scans")
        hole = cv2.ellipse(np.zeros_like(LEFT), (14, 30), (3, 6), 0, 0, 360, 1, -1)
        # The ring of a hole is that of the pixels around it.
        around = cv2.dilate(hole, np.ones((3, 3), np.uint8))
        paths = [[{"x": x, "y": y} for x, y in ring(one)] for one in (LEFT, around)]
        text = json.dumps(
            {
                "version": "2.0",
                "item": {"name": "x", "slots": [{"width": WIDTH, "height": HEIGHT}]},
                "annotations": [{"name": "lung", "polygon": {"paths": paths}}],
            }
        )
        for number in range(3):
            (tmp_path / f"scans/x{number}.json").write_text(text)
        assert_masks(listing(tmp_path), LEFT & (1 - hole), dice=0.97)

    def test_fractions_are_places_in_the_plane(self) -> None:
        shape = {"label": "lung", "points": [[1.5, 1.5], [4.5, 1.5], [4.5, 4.5], [1.5, 4.5]]}
        drawing = read_annotation(json.dumps({"shapes": [shape], "imageHeight": 8, "imageWidth": 8}).encode())
        # From 1.5 to 4.5 lie the centres (n + 0.5) of the pixels 1 to 3, or 2 to 4 with the other border.
        assert drawing.rasterise(lambda name: 1, height=8, width=8).sum() == 9

    @pytest.mark.parametrize(
        "content",
        [
            {"shapes": [{"points": [["a", 1]]}]},
            {"shapes": [{"points": [[1e300, 1], [2, 2], [3, 3]]}], "imageHeight": 9, "imageWidth": 9},
            {"shapes": [{"points": [[1, 1]], "shape_type": "circle"}]},
            {"shapes": 3},
            {"annotations": [{"polygon": {"path": [{"x": 1}]}}], "item": {}},
            {"other": 1},
        ],
    )
    def test_damage(self, content: dict[str, Any]) -> None:
        with pytest.raises(BadFileError):
            read_annotation(json.dumps(content).encode()).rasterise(lambda name: 1, height=9, width=9)


def test_cvat(tmp_path: Path) -> None:
    """Polygons for the one lung and a mask, whose run lengths go row by row, for the other."""
    images(tmp_path, "images")
    points = ";".join(f"{x},{y}" for x, y in ring(LEFT))
    rows, columns = np.flatnonzero(RIGHT.any(axis=1)), np.flatnonzero(RIGHT.any(axis=0))
    part = RIGHT[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], part.ravel()]).astype(int)))
    rle = ", ".join(map(str, np.diff([0, *edges, part.size])))
    shapes = (
        f'<polygon label="lung" points="{points}" z_order="0"/><mask label="lung" rle="{rle}" left="{columns[0]}" '
        f'top="{rows[0]}" width="{part.shape[1]}" height="{part.shape[0]}" z_order="0"/>'
    )
    text = "".join(
        f'<image id="{n}" name="x{n}.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>' for n in range(3)
    )
    (tmp_path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{text}</annotations>")
    assert_masks(listing(tmp_path), BOTH)


class TestRunLengths:
    @pytest.mark.parametrize("relative", [True, False])
    def test_of_a_competition(self, relative: bool, tmp_path: Path) -> None:
        images(tmp_path, "train")
        text = runs(BOTH, columns=True, relative=relative)
        (tmp_path / "train-rle.csv").write_text(
            f"ImageId, EncodedPixels\nx0,{text}\nx1,{runs(LEFT, columns=True, relative=relative)}\n"
            f"x1,{runs(RIGHT, columns=True, relative=relative)}\nx2, -1\n"
        )
        found = listing(tmp_path)
        # Nothing is marked in the third, and the table says so.
        assert found.corpus.empty_masks == "keep"
        masks = [read_sample(record, found.corpus, longer_side=1024).mask for record in found.records]
        assert [int(mask.sum()) for mask in masks] == [BOTH.sum(), BOTH.sum(), 0]
        assert np.array_equal(masks[0], BOTH)

    def test_chexmask(self, tmp_path: Path) -> None:
        images(tmp_path, "images", 4)
        rows = [
            f"x{n}.png,0.9,{quality},0,{runs(LEFT, columns=False, relative=False)},"
            f"{runs(RIGHT, columns=False, relative=False)},{runs(HEART, columns=False, relative=False)},"
            f"{HEIGHT},{WIDTH}\n"
            for n, quality in enumerate((0.9, 0.8, 0.75, 0.4))
        ]
        header = "Image Index,Dice RCA (Max),Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width\n"
        (tmp_path / "ChestX-Ray8.csv").write_text(header + "".join(rows))
        assert_masks(listing(tmp_path), BOTH, images=4)
        good = listing(tmp_path, min_quality=0.7)
        assert_masks(good, BOTH)
        assert "1 below corpus.min_quality = 0.7 are left out" in good.recognition[0]
        assert len(good.unlabelled) == 1
        parts = listing(tmp_path, classes=4, class_names=["left lung", "right lung", "heart"])
        sample = read_sample(parts.records[0], parts.corpus, longer_side=1024)
        assert np.array_equal(sample.mask, np.where(HEART, 3, np.where(RIGHT, 2, LEFT)))

    def test_that_leave_the_image(self, tmp_path: Path) -> None:
        images(tmp_path, "images")
        (tmp_path / "rle.csv").write_text("".join(["ImageId,EncodedPixels\n", *(f"x{n},1 99999\n" for n in range(3))]))
        found = listing(tmp_path)
        with pytest.raises(BadFileError, match=r"reach pixel 99999 of an image of 48 x 60 px"):
            read_sample(found.records[0], found.corpus, longer_side=1024)

    def test_starts(self) -> None:
        assert [part.tolist() for part in bounds("3 2 10 1", relative=False)] == [[2, 9], [4, 10]]
        assert [part.tolist() for part in bounds("3 2 10 1", relative=True)] == [[3, 15], [5, 16]]
        assert is_relative(["5 5 3 1"])
        assert not is_relative(["5 5 11 1", "-1"])
        with pytest.raises(BadFileError, match="pairs of start and length"):
            bounds("1 2 3", relative=False)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("lung", 1), ("Left_Lung", 1), ("lungs", 1), ("", 1), ("object", 1), ("lung nodules", 1)),
        *(("heart", 0), ("Hearts", 0), ("nodules", 0), ("opacities", 0), ("mass", 0), ("pneumonia", 0), ("aorta", 0)),
    ],
)
def test_structures_of_one_class(name: str, label: int) -> None:
    assert structure_label(name, CorpusSettings()) == label


def test_run_lengths_of_another_size_are_refused() -> None:
    small = np.zeros((32, 32), np.uint8)
    small[4:20, 4:20] = 1
    for size, reason in (((64, 64), "size_mismatch"), ((45000, 45000), "too_large")):
        drawing = Drawing(size=size, shapes=[Shape(box=(*small.shape, 0, 0), whole=True, runs=[0, 32 * 32])])
        with pytest.raises(BadFileError) as caught:
            drawing.rasterise(lambda name: 1, height=64, width=64)
        assert caught.value.reason == reason


def test_collections_of_the_same_names_in_folders_of_splits(tmp_path: Path) -> None:
    """As Roboflow exports them: each split has a folder with a file of annotations."""
    for split in ("train", "valid", "test"):
        images(tmp_path, split)
        (tmp_path / split / "_annotations.coco.json").write_text(coco_file(("lung", compressed(BOTH))))
    found = listing(tmp_path)
    assert len(found.records) == 9
    assert Counter(record.split for record in found.records) == {"train": 3, "val": 3, "test": 3}


class TestKindsOfShapes:
    def test_an_ellipse_of_cvat(self, tmp_path: Path) -> None:
        images(tmp_path, "images", 1)
        shape = '<ellipse label="lung" cx="14.5" cy="30.5" rx="8.2" ry="20.3" rotation="0" />'
        (tmp_path / "a.xml").write_text(
            f'<annotations><image name="x0.png" width="{WIDTH}" height="{HEIGHT}">{shape}</image></annotations>'
        )
        assert_masks(listing(tmp_path), LEFT, images=1, dice=0.97)

    def test_a_cuboid_of_cvat(self, tmp_path: Path) -> None:
        images(tmp_path, "images", 1)
        (tmp_path / "a.xml").write_text(
            '<annotations><image name="x0.png"><cuboid label="lung" /></image></annotations>'
        )
        with pytest.raises(UserError, match="nothing is named as a mask"):
            listing(tmp_path)

    def test_background_is_a_hole_and_ignored_areas_are_left_out(self) -> None:
        whole = Shape(name="lung", rings=[[0, 0, 19, 0, 19, 19, 0, 19]])
        hole = Shape(name="_background_", rings=[[5, 5, 9, 5, 9, 9, 5, 9]])
        heart = Shape(name="heart", rings=[[12, 12, 15, 12, 15, 15, 12, 15]])
        unsure = Shape(name="ignore", rings=[[0, 0, 3, 0, 3, 3, 0, 3]])
        labels = {"lung": 1, "heart": 0}
        mask = Drawing(shapes=[whole, hole, heart, unsure]).rasterise(labels.__getitem__, height=20, width=20)
        assert (mask[7, 7], mask[13, 13], mask[1, 1], mask[18, 18]) == (0, 1, 255, 1)

    def test_crowds_beside_single_structures(self) -> None:
        content = json.loads(coco_file(("lung", {"segmentation": [flat(LEFT)]}), ("lung", compressed(RIGHT))))
        content["annotations"][1]["iscrowd"] = 1
        drawing = next(iter((read_collection(json.dumps(content).encode(), ".json") or {}).values()))
        assert [shape.name for shape in drawing.shapes] == ["lung", "ignore"]

    def test_boxes_alone(self, tmp_path: Path) -> None:
        images(tmp_path, "images")
        content = json.loads(coco_file(("lung", {"bbox": [1, 2, 3, 4]})))
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="nothing is named as a mask"):
            listing(tmp_path)
