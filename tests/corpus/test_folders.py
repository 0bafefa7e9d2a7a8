"""Trees of images and masks as people have them; each test is one kind of tree, with what is right."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import cv2
import pytest
import yaml

from lungseg_ray.config import CorpusSettings, ShardJob, dump, load_settings
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.errors import UserError
from tests.corpus.kinds import png
from tests.corpus.trees import chest, fill, listing, reasons


def paired(found: Listing, root: Path) -> dict[str, list[str]]:
    """The paths of the masks of each image, by the path of the image."""
    return {
        str(Path(record.image_uri).relative_to(root)): [str(Path(uri).relative_to(root)) for uri in record.mask_uris]
        for record in found.records
    }


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        *(
            ("images", "masks"),
            ("Image", "Mask"),
            ("imgs", "labels"),
            ("img_dir", "ann_dir"),
            ("images", "annotations"),
        ),
        *(("png_images", "png_masks"), ("JPEGImages", "SegmentationClass"), ("train_images", "train_masks")),
        *(("CXR_png", "masks"), ("raw", "ground truth"), ("my set/images", "my set/masks"), ("a/b/c/img", "a/b/c/seg")),
        *(("DatasetX_images", "DatasetX_masks"), ("x-rays", "lung_segmentations"), ("deep/x/images", "deep/x/y/masks")),
    ],
)
def test_names_of_folders(images: str, masks: str, tmp_path: Path) -> None:
    fill(tmp_path, *(f"{images}/{n}.png" for n in range(4)), *(f"{masks}/{n}.png" for n in range(4)))
    found = listing(tmp_path)
    assert paired(found, tmp_path) == {f"{images}/{n}.png": [f"{masks}/{n}.png"] for n in range(4)}
    assert [record.image_id for record in found.records] == ["0", "1", "2", "3"]
    assert not found.set_aside


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        *(("{}.png", "{}_mask.png"), ("{}.png", "mask_{}.png"), ("{}.png", "{}-label.gif"), ("{}.jpg", "{} seg.png")),
        *(("{}.png", "{}.png.png"), ("IMG_{}.PNG", "img_{}.png"), ("{}_0000.png", "{}.png"), ("img{}.png", "gt{}.png")),
        *(("image_{}_x.png", "mask_{}_x.png"), ("{}.png", "{}_lung_mask.png"), ("{}_cxr.png", "{}.png")),
        *(("{}.png", "{}_annotated.png"), ("case {}.png", "Case {}_Segmentation.png"), ("é{}.png", "e\u0301{}.png")),
    ],
)
@pytest.mark.parametrize("folders", [("images/", "masks/"), ("", "")])
def test_names_of_files(image: str, mask: str, folders: tuple[str, str], tmp_path: Path) -> None:
    """In two folders, or in one where names say which are masks."""
    if folders == ("", "") and (not mask.strip("{}.pngif") or "annotated" in mask or "IMG" in image or "é" in image):
        pytest.skip("these names do not say which are masks")
    if folders == ("", "") and mask in ("{}.png", "{}.png.png"):
        pytest.skip("these names do not say which are masks")
    numbers = ["001", "002", "010", "011", "100"]
    files = {folders[0] + image.format(n): folders[1] + mask.format(n) for n in numbers}
    fill(tmp_path, *files, *files.values())
    found = listing(tmp_path)
    assert paired(found, tmp_path) == {name: [other] for name, other in files.items()}
    assert not found.set_aside


def test_a_name_within_another_is_another(tmp_path: Path) -> None:
    """1 and 10, x and x_1: no mask goes to an image of a similar name."""
    fill(tmp_path, "images/1.png", "images/x.png", "images/x_1.png", "masks/10.png", "masks/x_1.png", "masks/x.png")
    found = listing(tmp_path)
    assert paired(found, tmp_path) == {f"images/{name}.png": [f"masks/{name}.png"] for name in ("x", "x_1")}
    assert reasons(found) == {"1": "no_mask", "10": "no_image"}


def test_no_mask_of_another_folder(tmp_path: Path) -> None:
    """Of a/1 the image is missing, and of b/1 the mask."""
    fill(tmp_path, "images/b/1.png", "masks/a/1.png", "images/a/2.png", "masks/a/2.png", "images/b/2.png")
    fill(tmp_path, "masks/b/2.png")
    found = listing(tmp_path)
    assert len(found.records) == 2
    assert reasons(found) == {"a/1": "no_image", "b/1": "no_mask"}


def test_flat_masks_of_nested_images(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/ward {n % 2}/day{n}/x{n}.png" for n in range(4)), *(f"masks/x{n}.png" for n in range(4)))
    assert paired(listing(tmp_path), tmp_path) == {
        f"images/ward {n % 2}/day{n}/x{n}.png": [f"masks/x{n}.png"] for n in range(4)
    }
    # Two images of that name: the mask belongs to neither.
    fill(tmp_path, "images/ward 3/x0.png")
    assert set(reasons(listing(tmp_path)).values()) == {"ambiguous"}


@pytest.mark.parametrize("tree", ["{split}/{kind}/{n}.png", "{kind}/{split}/{n}.png", "{kind}_{split}/{n}.png"])
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "Validation", "Testing"), ("tr", "dev", "ts")]
)
def test_splits(tree: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    numbers = dict(zip(names, (range(5), range(5, 7), range(7, 10)), strict=True))
    for split, some in numbers.items():
        for kind in ("images", "masks"):
            fill(tmp_path, *(tree.format(split=split, kind=kind, n=n) for n in some))
    found = listing(tmp_path)
    assert Counter(record.split for record in found.records) == {"train": 5, "val": 2, "test": 3}
    assert not found.set_aside
    assert {frozenset(record.groups) for record in found.records} == {frozenset()}


def test_images_without_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """nnU-Net's test images have no labels; a single image without a mask is a fault."""
    fill(tmp_path, *(f"imagesTr/a_{n}_0000.png" for n in range(5)), *(f"labelsTr/a_{n}.png" for n in range(4)))
    fill(tmp_path, "imagesTs/b_0000.png")
    found = listing(tmp_path)
    assert (len(found.records), len(found.unlabelled)) == (4, 1)
    assert list(reasons(found).values()) == ["no_mask"]


def test_classes_and_hospitals_are_groups(tmp_path: Path) -> None:
    for hospital in ("north", "south"):
        for finding in ("COVID", "Normal"):
            for kind in ("images", "masks"):
                fill(tmp_path, *(f"{hospital}/{finding}/{kind}/{n}.png" for n in range(4)))
    found = listing(tmp_path)
    assert len(found.records) == len({record.image_id for record in found.records}) == 16
    assert Counter((record.groups["folder"], record.groups["folder_2"]) for record in found.records) == dict.fromkeys(
        [("north", "COVID"), ("north", "Normal"), ("south", "COVID"), ("south", "Normal")], 4
    )


@pytest.mark.parametrize("tree", ["masks/{side}/{n}.png", "{side}_masks/{n}.png", "masks/{n}_{side}.png"])
def test_a_file_for_each_lung(tree: str, tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{n}.png" for n in range(4)))
    fill(tmp_path, *(tree.format(side=side, n=n) for side in ("left", "right") for n in range(4)))
    found = listing(tmp_path)
    assert {len(record.mask_uris) for record in found.records} == {2}
    (tmp_path / tree.format(side="left", n=2)).unlink()
    assert reasons(listing(tmp_path)) == {"2": "no_mask"}


def test_several_numbered_masks(tmp_path: Path) -> None:
    fill(tmp_path, "a (1).png", "a (1)_mask.png", "a (1)_mask_1.png", "a (2).png", "a (2)_mask.png")
    assert {record.image_id: len(record.mask_uris) for record in listing(tmp_path).records} == {"a (1)": 2, "a (2)": 1}


def test_masks_of_several_kinds(tmp_path: Path) -> None:
    for folder in ("images", "lung masks", "infection masks"):
        fill(tmp_path, *(f"{folder}/{n}.png" for n in range(4)))
    found = listing(tmp_path)
    assert paired(found, tmp_path)["images/0.png"] == ["lung masks/0.png"]
    assert "without the masks of infection" in found.recognition[0]
    with pytest.raises(UserError, match=r"several kinds, found\n  infection: 4 images\n  lung: 4 images\nName"):
        listing(tmp_path, class_names=["opacity"])
    named = listing(tmp_path, class_names=["opacity"], masks=["infection masks"])
    assert paired(named, tmp_path)["images/0.png"] == ["infection masks/0.png"]


def test_named_folders(tmp_path: Path) -> None:
    fill(tmp_path, *(f"aufnahmen/{n}.png" for n in range(4)), *(f"konturen/{n}.png" for n in range(4)))
    with pytest.raises(UserError, match=r"4 \.png in aufnahmen/, 4 \.png in konturen/.*--corpus\.masks FOLDER"):
        listing(tmp_path)
    for masks in ("konturen", "konturen/", "kont*/*.png"):
        found = listing(tmp_path, masks=[masks])
        assert paired(found, tmp_path)["aufnahmen/0.png"] == ["konturen/0.png"]
    with pytest.raises(UserError, match=r"corpus\.masks: no file below corpus\.root matches lungs"):
        listing(tmp_path, masks=["lungs"])


def test_a_corpus_twice(tmp_path: Path) -> None:
    for top in ("set", "data/set"):
        for kind in ("images", "masks"):
            fill(tmp_path, *(f"{top}/{kind}/{n}.png" for n in range(4)))
    shutil.rmtree(tmp_path / "data/set")
    shutil.copytree(tmp_path / "set", tmp_path / "data/set")
    found = listing(tmp_path)
    assert len(found.records) == 4
    assert found.recognition[0] == "left out: data/set/, whose files are all in set/, too"
    # The same names and sizes with other content are other images.
    for path in (tmp_path / "data/set/images").iterdir():
        path.write_bytes(b"y" * path.stat().st_size)
    assert len(listing(tmp_path).records) == 8


@pytest.mark.parametrize("copy", ["data copy", "data-old", "data (1)", "data2"])
def test_a_copy_beside_a_corpus(copy: str, tmp_path: Path) -> None:
    files = [
        f"{split}/{kind}/{split}{n}.png" for split in ("train", "test") for kind in ("images", "masks") for n in "abcd"
    ]
    for file in files:
        for folder in ("data", copy):
            (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / file).write_text(file)
    found = listing(tmp_path)
    assert len(found.records) == 8
    assert not found.set_aside
    assert any(line.startswith(f"left out: {copy}/, whose files are all in data/") for line in found.recognition)


def test_folders_of_patients_are_no_copies(tmp_path: Path) -> None:
    """Files of patients may have the same names and sizes, and even the same content in masks."""
    fill(tmp_path, *(f"p{p}/s{k}/{kind}.png" for p in range(8) for k in range(2) for kind in ("view", "view_mask")))
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"same")
    assert len(listing(tmp_path).records) == 16


def test_a_mask_of_an_absent_image(tmp_path: Path) -> None:
    """It is not united with the mask of another image whose name its own begins with."""
    names = [f"p{p}{end}" for p in range(1, 6) for end in ("", "_2")]
    fill(tmp_path, *(f"images/{name}.png" for name in names if name != "p1_2"))
    fill(tmp_path, *(f"masks/{name}_mask.png" for name in names))
    found = listing(tmp_path)
    assert paired(found, tmp_path)["images/p1.png"] == ["masks/p1_mask.png"]
    assert reasons(found) == {"p1_2_mask": "no_image"}


def test_names_that_repeat_in_folders_of_other_depths(tmp_path: Path) -> None:
    patients = [(p, k) for p in range(300) for k in range(1, 3)]
    fill(tmp_path, *(f"CheXpert/train/patient{p}/study{k}/view1.jpg" for p, k in patients))
    fill(tmp_path, *(f"masks/patient{p}/study{k}/view1.png" for p, k in patients))
    assert paired(listing(tmp_path), tmp_path) == {
        f"CheXpert/train/patient{p}/study{k}/view1.jpg": [f"masks/patient{p}/study{k}/view1.png"] for p, k in patients
    }


def test_junk(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{n}.png" for n in range(3)), *(f"masks/{n}.png" for n in range(3)))
    fill(tmp_path, "images/._0.png", "__MACOSX/images/._0.png", "images/.ipynb_checkpoints/0-checkpoint.png")
    fill(tmp_path, "images/@eaDir/0.png/SYNO_THUMB.png", "images/Thumbs.db", "images/thumbnails/0.png", "desktop.ini")
    found = listing(tmp_path)
    assert (len(found.records), found.set_aside, found.ignored) == (3, [], 0)
    assert found.recognition[0].startswith("left out: 7 files")


def test_several_roots(tmp_path: Path) -> None:
    for top in ("north/set", "south/set", "east"):
        for kind in ("images", "masks"):
            fill(tmp_path / top, *(f"{kind}/P{n}_{k}.png" for n in range(3) for k in range(2)))
    roots = [str(tmp_path / top) for top in ("north/set", "south/set", "east")]
    found = list_corpus(CorpusSettings.model_validate({"root": roots}))
    assert Counter(record.groups["root"] for record in found.records) == {
        "north/set": 6,
        "south/set": 6,
        f"{tmp_path.name}/east": 6,
    }
    assert len({record.image_id for record in found.records}) == 18
    # Patients of one name may be the same, and are in one split.
    assert len({record.patient_id for record in found.records}) == 3
    arguments = [word for root in roots for word in ("--corpus.root", root)]
    job = load_settings(ShardJob, [*arguments, "--shards.root", str(tmp_path / "out")])
    assert str(job.corpus.root) == " and ".join(roots)
    again = ShardJob.model_validate(yaml.safe_load(dump(job)))
    assert again.corpus.root == job.corpus.root
    with pytest.raises(UserError, match=r"corpus\.root: expected different folders"):
        load_settings(ShardJob, ["--corpus.root", roots[0], "--corpus.root", roots[0]])


class TestNumbers:
    """Numbers in the names of masks: of the image, of the part, or of nothing."""

    @pytest.mark.parametrize("number", ["_1", "(1)", " (1)"])
    def test_of_a_second_image(self, number: str, tmp_path: Path) -> None:
        names = [str(name) for name in range(20)] + [f"3{number}"]
        fill(tmp_path, *(f"images/{name}.png" for name in names))
        fill(tmp_path, *(f"masks/{name}_mask.png" for name in names[:-1]), f"masks/3_mask{number}.png")
        wanted = {f"images/{name}.png": [f"masks/{name}_mask.png"] for name in names[:-1]}
        assert paired(listing(tmp_path), tmp_path) == wanted | {f"images/3{number}.png": [f"masks/3_mask{number}.png"]}

    def test_of_parts(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"images/{name}.png" for name in range(4)))
        fill(tmp_path, *(f"masks/{name}_mask_{part}.png" for name in range(4) for part in (0, 1)))
        found = listing(tmp_path)
        assert all(len(record.masks) == 2 for record in found.records)
        assert "names differ by _mask_<number> (8)" in found.recognition[0]

    def test_of_nothing(self, tmp_path: Path) -> None:
        """Each mask has a number of its own behind the word, as exports of annotation tools do."""
        fill(tmp_path, *(f"images/{name:05d}.png" for name in range(2500)))
        fill(tmp_path, *(f"masks/{name:05d}_mask_{20230000000 + 37 * name}.png" for name in range(2500)))
        found = listing(tmp_path)
        assert (len(found.records), found.set_aside) == (2500, [])


def test_a_mask_deep_in_folders(tmp_path: Path) -> None:
    deep = "/".join("abcdefghijklmnopqrstuvwx")
    fill(tmp_path, *(f"images/{deep}/{name}.png" for name in range(30)), *(f"masks/{name}.png" for name in range(30)))
    assert len(listing(tmp_path).records) == 30


class TestCopies:
    def tree(self, root: Path, suffix: str, changed: str) -> None:
        for reader in ("reader1", "reader2"):
            for folder in ("images", "masks"):
                (root / reader / folder).mkdir(parents=True)
                for name in range(40):
                    content = b"changed" if (reader, folder, name) == ("reader2", changed, 21) else b"content"
                    (root / reader / folder / f"{name}{suffix}").write_bytes(content)

    @pytest.mark.parametrize("suffix", [".bmp", ".tif", ".npy"])
    def test_every_file_of_a_fixed_size_is_compared(self, suffix: str, tmp_path: Path) -> None:
        self.tree(tmp_path, suffix, "masks")
        assert not any("reader2" in line for line in listing(tmp_path).recognition if line.startswith("left out"))

    def test_equal_folders(self, tmp_path: Path) -> None:
        self.tree(tmp_path, ".bmp", "")
        assert listing(tmp_path).recognition[0] == ("left out: reader2/, whose files are all in reader1/, too")


class TestByPixels:
    """Two folders whose names say nothing."""

    def fill(self, root: Path, *places: str) -> None:
        for number in range(6):
            for place, pixels in zip(places, chest(number, 64), strict=True):
                target = root / place.format(number)
                target.parent.mkdir(parents=True, exist_ok=True)
                coded = cv2.imencode(target.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
                target.write_bytes(coded.tobytes())

    @pytest.mark.parametrize(
        ("image", "mask"),
        [
            ("a/{}.png", "b/{}.png"),
            ("b/{}.png", "a/{}.png"),
            ("x/one/{}.png", "x/two/{}.png"),
            ("A/{}.jpg", "B/{}.jpg"),
        ],
    )
    def test_masks_are_found(self, image: str, mask: str, tmp_path: Path) -> None:
        self.fill(tmp_path, image, mask)
        found = listing(tmp_path)
        assert paired(found, tmp_path) == {image.format(n): [mask.format(n)] for n in range(6)}
        assert "told apart by their pixels" in found.recognition[0]
        assert {record.image_id for record in found.records} == {str(n) for n in range(6)}

    def test_in_folders_of_splits(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            self.fill(tmp_path, f"{split}/a/{split}{{}}.png", f"{split}/b/{split}{{}}.png")
        assert Counter(record.split for record in listing(tmp_path).records) == {"train": 6, "test": 6}

    def test_two_folders_of_images(self, tmp_path: Path) -> None:
        for number in range(6):
            for place in ("a", "b"):
                (tmp_path / place).mkdir(exist_ok=True)
                (tmp_path / place / f"{number}.png").write_bytes(png(chest(number, 64)[0]))
        with pytest.raises(UserError, match="nothing is named as a mask"):
            listing(tmp_path)


class TestWordsBesideThatOfTheMask:
    def test_a_mask_of_an_absent_image(self, tmp_path: Path) -> None:
        """What follows the name of an image is a part of another name, unless masks share it."""
        fill(tmp_path, *(f"images/p{n:02d}.png" for n in range(20)))
        fill(tmp_path, *(f"masks/p{n:02d}.png" for n in range(19)), "masks/p19_lateral_mask.png")
        found = listing(tmp_path)
        assert len(found.records) == 19
        assert reasons(found) == {"p19": "no_mask", "p19_lateral_mask": "no_image"}

    @pytest.mark.parametrize("count", [3, 2500])
    def test_a_code_of_each(self, count: int, tmp_path: Path) -> None:
        codes = ["".join(chr(97 + n // 26**place % 26) for place in range(3)) for n in range(count)]
        fill(tmp_path, *(f"images/img{n:05d}.png" for n in range(count)))
        fill(tmp_path, *(f"masks/img{n:05d}_mask_x{code}.png" for n, code in enumerate(codes)))
        found = listing(tmp_path)
        assert (len(found.records), found.set_aside) == (count, [])

    def test_letters_for_sides_in_folders(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"images/{n}.png" for n in range(4)))
        fill(tmp_path, *(f"masks/lung_{side}/{n}.png" for n in range(4) for side in "LR"))
        assert all(len(record.masks) == 2 for record in listing(tmp_path).records)

    def test_a_folder_for_each_image(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"pat{n:02d}/{kind}.png" for n in range(4) for kind in ("image", "mask")))
        assert paired(listing(tmp_path), tmp_path) == {
            f"pat{n:02d}/image.png": [f"pat{n:02d}/mask.png"] for n in range(4)
        }


def test_files_that_are_not_used_are_named(tmp_path: Path) -> None:
    fill(tmp_path, *(f"Normal/{kind}/n{n}.png" for kind in ("images", "masks") for n in range(4)))
    fill(tmp_path, *(f"TB/t{n}{end}.png" for end in ("", "_mask") for n in range(4)))
    (warning,) = listing(tmp_path).warnings
    assert warning.startswith("8 files that may be images are not used, in TB/, since other folders are named")


class TestRefusals:
    """What cannot be read is named, with the way out."""

    @pytest.mark.parametrize(
        ("name", "content", "tool"),
        [
            ("via.json", '{"_via_img_metadata": {}}', "VGG Image Annotator"),
            ("via.json", '{"a.png1": {"filename": "a.png", "regions": []}}', "VGG Image Annotator"),
            ("all.json", '[{"data": {"image": "a.png"}, "annotations": []}]', "Label Studio"),
            ("ann/a.png.json", '{"objects": [{"classTitle": "lung"}]}', "Supervisely"),
            ("a.json", '{"shapes": [{"label": "lung", "shape_type": "mask", "points": []}]}', "LabelMe with shapes"),
            ("labels/a.txt", "0 0.1 0.2 0.3 0.4 0.5 0.6\n", "YOLO"),
            ("a.xml", "<annotation><object><bndbox></bndbox></object></annotation>", "PASCAL VOC with boxes alone"),
            ("a.xml", "<annotations><track id='0'></track></annotations>", "CVAT for video"),
        ],
    )
    def test_annotations_of_other_tools(self, name: str, content: str, tool: str, tmp_path: Path) -> None:
        fill(tmp_path, *(f"images/{n}.png" for n in "ab"))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=rf"{name} is of {tool}.*, which is not read .*export masks as images"):
            listing(tmp_path)

    def test_a_table_that_pairs(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"images/{n}.png" for n in "abc"), *(f"drawn/{n}.png" for n in "xyz"))
        (tmp_path / "list.csv").write_text("image,mask\nimages/a.png,drawn/x.png\n")
        with pytest.raises(UserError, match=r"list.csv names images and masks: --corpus.root \S*list.csv"):
            listing(tmp_path)

    def test_folders_of_two_hospitals(self, tmp_path: Path) -> None:
        for hospital in ("A Hospital", "B"):
            fill(tmp_path / hospital, *(f"img/{hospital[0]}{n}.png" for n in range(4)))
            fill(tmp_path / hospital, *(f"final/{hospital[0]}{n}.png" for n in range(4)))
        with pytest.raises(UserError, match=r"--corpus.masks '\*/final/\*'"):
            listing(tmp_path)
        assert len(listing(tmp_path, masks=["*/final/*"]).records) == 8

    def test_a_folder_for_each_image_with_masks_of_other_names(self, tmp_path: Path) -> None:
        for n in range(4):
            fill(tmp_path / f"ID{n}", f"images/ID{n}.png", *(f"masks/{n}f{k}e.png" for k in range(2)))
        found = listing(tmp_path)
        assert {record.image_id: len(record.masks) for record in found.records} == {f"ID{n}/ID{n}": 2 for n in range(4)}


def test_folders_of_long_names(tmp_path: Path) -> None:
    """As the ISIC challenges name theirs: only one of two folders says what it holds."""
    for split, numbers in (("Training", range(4)), ("Test", range(4, 6))):
        base = f"ISBI2016_ISIC_Part1_{split}"
        fill(tmp_path, *(f"{base}_Data/ISIC_{n:07d}.jpg" for n in numbers))
        fill(tmp_path, *(f"{base}_GroundTruth/ISIC_{n:07d}_Segmentation.png" for n in numbers))
    found = listing(tmp_path)
    assert Counter(record.split for record in found.records) == {"train": 4, "test": 2}
    assert [record.image_id for record in found.records][:2] == ["test/ISIC_0000004", "test/ISIC_0000005"]


def test_a_folder_of_masks_that_belong_to_no_image(tmp_path: Path) -> None:
    """As in DRIVE, where the masks named like the images are fields of view."""
    fill(tmp_path, *(f"images/{n:02d}_training.png" for n in range(4)))
    fill(tmp_path, *(f"1st_manual/{n:02d}_manual1.png" for n in range(4)))
    fill(tmp_path, *(f"mask/{n:02d}_training_mask.png" for n in range(4)))
    assert "No mask in 1st_manual/ has the name of an image; those of mask/ are used." in listing(tmp_path).warnings[0]
    found = listing(tmp_path, masks=["1st_manual"])
    assert paired(found, tmp_path)["images/00_training.png"] == ["1st_manual/00_manual1.png"]


@pytest.mark.parametrize("beside", ["lung", "lung_predictions"])
def test_a_folder_named_like_that_of_the_masks_is_not_of_images(beside: str, tmp_path: Path) -> None:
    for folder in ("images", "lung_masks", beside):
        fill(tmp_path, *(f"{folder}/{n}.png" for n in range(4)))
    found = listing(tmp_path)
    assert paired(found, tmp_path) == {f"images/{n}.png": [f"lung_masks/{n}.png"] for n in range(4)}
