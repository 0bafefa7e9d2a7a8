from __future__ import annotations

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from lungseg_ray.audit import outliers
from lungseg_ray.audit.duplicates import NEAR, find_duplicates, near_pairs
from lungseg_ray.audit.facts import ImageFacts, LabelFacts, image_facts, intensity, measure_label, perceptual_hash
from lungseg_ray.audit.findings import Finding, list_findings, usual_parts
from lungseg_ray.audit.result import Audit, write_table
from lungseg_ray.config import CorpusSettings, Settings, ShardJob, SplitSettings, load_settings
from lungseg_ray.corpus import MaskSource, Record, Sample, SetAside, Split
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.audit import assign_possible_splits, audit, audit_summary
from lungseg_ray.storage import Location, locate
from tests.conftest import write_pairs
from tests.helpers import DATA

LUNG = LabelFacts(share=0.3, parts=2, specks=0, ratio=0.9, touches=(), left=0.5, row=0.5, column=0.5)


def make_facts(name: str, **change: Any) -> ImageFacts:
    """An image that nothing is wrong with; its hash is far from that of any other name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    plain: dict[str, Any] = {
        "image_id": name,
        "patient_id": f"patient of {name}",
        "place": f"/data/{name}.png",
        "format": "png",
        "groups": {},
        "height": 100,
        "width": 120,
        "bits": 8,
        "spacing": None,
        "mean": 0.5,
        "std": 0.2,
        "low": 0.0,
        "high": 0.9,
        "brightest": 1.0,
        "black": 0.01,
        "white": 0.0,
        "phash": digest,
        "image_sha256": digest,
        "mask_sha256": digest[::-1],
        "labels": {"lung": LUNG},
        "split": "train",
    }
    return ImageFacts(**{**plain, **change})


def table_of(audit: Audit, folder: Path) -> str:
    place = locate(str(folder)) / "audit.csv"
    write_table(audit, place)
    return place.read_text()


def make_audit(images: list[ImageFacts], **change: Any) -> Audit:
    plain: dict[str, Any] = {
        "corpus": CorpusSettings(root="somewhere"),
        "longer_side": 64,
        "layout": "pairs",
        "records": {
            one.image_id: Record(one.image_id, one.place, (MaskSource("mask.png"),), one.patient_id) for one in images
        },
        "images": images,
        "set_aside": [],
        "ignored": 0,
        "split_conflicts": {},
        "unsplit_reason": "",
        "duplicates": find_duplicates(images),
        "outliers": outliers.find_outliers(images, ["lung"]),
    }
    return Audit(**{**plain, **change})


def three_splits(count: int = 4, **change: Any) -> list[ImageFacts]:
    return [
        make_facts(f"{split}-{number}", split=split, **change)
        for split in ("train", "val", "test")
        for number in range(count)
    ]


def texts(found: list[Finding]) -> list[str]:
    return [f"{one.weight}: {one.text}" for one in found]


class TestMarked:
    def test_two_parts_and_a_speck(self) -> None:
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 5:25] = 1  # 400 pixels, all left of column 30
        mask[10:30, 35:45] = 1  # 200
        mask[35, 50] = 1  # 1 of 601, less than 1 %
        found = measure_label(mask, 1)
        assert found.share == pytest.approx(601 / 2400)
        assert (found.parts, found.specks, found.ratio, found.touches) == (2, 1, 0.5, ())
        assert found.left == pytest.approx(400 / 601)
        # Rows 10 to 29 have their centre at 20; the speck's is at 35.5.
        assert found.row == pytest.approx((600 * 20 + 35.5) / 601 / 40)
        assert found.column == pytest.approx((400 * 15 + 200 * 40 + 50.5) / 601 / 60)

    def test_borders_of_each_label(self) -> None:
        mask = np.zeros((20, 20), np.uint8)
        mask[0:5, 8:12] = 1
        mask[10:20, 15:20] = 2
        assert measure_label(mask, 1).touches == ("top",)
        assert measure_label(mask, 2).touches == ("right", "bottom")

    def test_middle_column_counts_half(self) -> None:
        # Of 5 columns the middle one is half left: (1 + 1 + 0.5) / 5.
        assert measure_label(np.ones((3, 5), np.uint8), 1).left == pytest.approx(0.5)

    def test_ignored_pixels_do_not_count(self) -> None:
        mask = np.zeros((10, 10), np.uint8)
        mask[:5] = 255
        mask[9, 1:3] = 1
        assert measure_label(mask, 1).share == pytest.approx(2 / 50)

    def test_diagonal_neighbours_are_one_part(self) -> None:
        assert measure_label(np.eye(9, dtype=np.uint8), 1).parts == 1

    def test_nothing(self) -> None:
        assert measure_label(np.zeros((9, 9), np.uint8), 1) == LabelFacts(0.0, 0, 0, None, (), None, None, None)


class TestIntensity:
    def test_figures(self) -> None:
        image = np.array([[0, 0, 51, 51, 102, 102, 255, 255, 255, 255]], np.uint8)[:, :, None]
        found = intensity(image)
        # (0 + 0 + 0.2 + 0.2 + 0.4 + 0.4 + 4) / 10
        assert found["mean"] == pytest.approx(0.52)
        assert found["std"] == pytest.approx(np.std([0, 0, 0.2, 0.2, 0.4, 0.4, 1, 1, 1, 1]))
        assert [found["black"], found["white"]] == pytest.approx([0.2, 0.4])
        assert (found["low"], found["high"], found["brightest"]) == (0, 1, 1)

    def test_colour_is_seen_in_grey(self) -> None:
        image = np.zeros((4, 4, 3), np.uint8)
        image[..., 1] = 255
        assert intensity(image)["mean"] == pytest.approx(150 / 255)  # 0.587 green
        assert perceptual_hash(image) == perceptual_hash(np.full((4, 4, 1), 150, np.uint8))


class TestFacts:
    def sample(self, **change: Any) -> Sample:
        image, mask = draw(0, seed=0, size=64)
        plain = {"source_height": 640, "source_width": 640, "source_bits": 12, "spacing": (0.2, 0.2)}
        plain |= {"image_sha256": "a", "mask_sha256": "b"}
        return Sample(image=image[:, :, None], mask=mask, **{**plain, **change})

    def test_of_the_file(self) -> None:
        record = Record("x1", "/data/x1.PNG", (MaskSource("/m.png"),), "p1", groups={"sex": "f"})
        found = image_facts(record, self.sample(), ["lung"])
        assert (found.format, found.place, found.bits, found.spacing) == ("png", "/data/x1.PNG", 12, (0.2, 0.2))
        assert (found.height, found.patient_id, dict(found.groups)) == (640, "p1", {"sex": "f"})
        assert found.labels["lung"].parts == 2

    def test_without_a_mask(self) -> None:
        assert image_facts(Record("x", "/x.png", (), "x"), self.sample(mask_sha256=""), ["lung"]).labels == {}

    def test_private_places_are_not_told(self, tmp_path: Path) -> None:
        record = Record(
            "a1", "/data/Doe^Jane/1.2.3.dcm", (MaskSource("/m.png"),), "b2", groups={"sex": "F"}, private=True
        )
        found = image_facts(record, self.sample(), ["lung"])
        assert (found.place, found.format, found.groups) == ("a1", "dicom", {"sex": "F"})
        assert "Doe" not in table_of(make_audit([found]), tmp_path)


def altered(image: NDArray[np.uint8], how: str) -> NDArray[np.uint8]:
    if how == "jpeg":
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
    if how == "half":
        return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    if how == "gamma":
        return np.asarray(255 * (image / 255) ** 0.7, np.uint8)
    return np.ascontiguousarray(image[:, ::-1])


def opened(file: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8)


def bits_between(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    first, second = (int(perceptual_hash(image[:, :, None]), 16) for image in (one, other))
    return (first ^ second).bit_count()


class TestTwins:
    @pytest.mark.parametrize("count", [0, 1, 2, 300])
    def test_near_pairs_as_by_brute_force(self, count: int) -> None:
        rng = np.random.default_rng(count)
        # As of X-rays, the low frequencies of all are much alike.
        bits = rng.random((count, 256)) < np.linspace(0.05, 0.5, 256)
        for number in range(0, count // 2, 2):
            bits[number + 1] = bits[number]
            bits[number + 1, rng.choice(256, rng.integers(1, 45), replace=False)] ^= True
        apart = (bits[:, None] != bits[None]).sum(axis=2)
        wanted = {(a, b, apart[a, b]) for a in range(count) for b in range(a + 1, count) if apart[a, b] <= NEAR}
        found = near_pairs(np.packbits(bits, axis=1))
        assert set(found) == wanted
        assert [bits for *_, bits in found] == sorted(bits for *_, bits in wanted)
        assert len(wanted) > 20 or count < 300

    def test_farthest_that_counts(self) -> None:
        hashes = np.zeros((2, 32), np.uint8)
        # One bit in each of 30 of the places that are compared.
        hashes[1, :30] = 1
        assert near_pairs(hashes) == [(0, 1, 30)]
        hashes[1, 30] = 1
        assert near_pairs(hashes) == []

    def test_many_that_look_the_same_end_the_search(self) -> None:
        # Each of 3000 differs from one image in 8 bits, so that all 4.5 million pairs are near.
        rng = np.random.default_rng(0)
        bits = np.tile(rng.random(256) < 0.5, (3000, 1))
        for row in bits:
            row[rng.choice(256, 8, replace=False)] ^= True
        found = near_pairs(np.unique(np.packbits(bits, axis=1), axis=0), most=1000)
        assert len(found) == 1000

    def test_no_more_than_asked_for(self) -> None:
        hashes = np.zeros((20, 32), np.uint8)
        hashes[:, 0] = np.arange(20)
        assert len(near_pairs(hashes, most=5)) == 5

    def test_groups_stand_beside_their_first(self) -> None:
        images = [make_facts(name) for name in "abcdef"]
        images[3] = make_facts("d", image_sha256=images[0].image_sha256, split="val")
        images[4] = make_facts("e", phash=images[1].phash)
        code = f"{int(images[2].phash, 16) ^ 0b111:064x}"
        images[5] = make_facts("f", phash=code, split="test")
        found = [
            (one.first.image_id, one.second.image_id, one.bits, one.crosses_split) for one in find_duplicates(images)
        ]
        assert found == [("a", "d", None, True), ("b", "e", 0, False), ("c", "f", 3, True)]

    @pytest.mark.parametrize(("how", "found"), [("jpeg", True), ("half", True), ("gamma", True), ("mirrored", False)])
    def test_copies_of_a_chest(self, how: str, found: bool) -> None:
        image, _ = draw(3, seed=0, size=256)
        assert (bits_between(image, altered(image, how)) <= NEAR) == found

    def test_other_chests_are_far(self) -> None:
        chests = [draw(number, seed=0, size=128)[0] for number in range(0, 60, 6)]
        assert min(bits_between(one, other) for at, one in enumerate(chests) for other in chests[:at]) > NEAR + 20

    @pytest.mark.skipif(not (DATA / "cxr-lungs").exists(), reason="the X-rays are not here")
    def test_real_x_rays(self) -> None:
        files = sorted((DATA / "cxr-lungs/images").iterdir())[::6]
        images = [opened(file) for file in files]
        assert max(bits_between(image, altered(image, "jpeg")) for image in images) <= 6
        assert max(bits_between(image, altered(image, "gamma")) for image in images) <= NEAR
        assert min(bits_between(one, other) for at, one in enumerate(images) for other in images[:at]) >= 64


class TestOutliers:
    def test_z_scores(self) -> None:
        # Median 3, absolute deviations 2, 1, 0, 1, 97 with the median 1.
        found = outliers.z_scores(np.array([1.0, 2, 3, 4, 100]))
        assert found == pytest.approx(np.array([-2, -1, 0, 1, 97]) / 1.4826)

    def test_mostly_the_same(self) -> None:
        # The median deviation is 0; the mean one is 0.2.
        assert outliers.z_scores(np.array([2.0, 2, 2, 2, 1]))[-1] == pytest.approx(-1 / (1.2533 * 0.2))
        assert outliers.z_scores(np.array([2.0, 2, 2])).tolist() == [0, 0, 0]
        assert np.isnan(outliers.z_scores(np.array([np.nan, np.nan]))).all()

    def test_says_why(self) -> None:
        images = [make_facts(f"x{number}", mean=0.5 + number / 100) for number in range(9)]
        images[4] = make_facts("odd", labels={"lung": LabelFacts(0.62, 2, 0, 0.9, (), 0.5, 0.5, 0.5)}, mean=0.54)
        first = outliers.find_outliers(images, ["lung"])[0]
        assert first.image.image_id == "odd"
        assert str(first.reasons[0]).startswith("share of lung 0.62, median 0.3 (z +")

    def test_a_few_for_each_reason(self) -> None:
        images = [make_facts(f"x{number}", width=120 + 40 * (number > 30)) for number in range(40)]
        images[0] = make_facts("bright", mean=0.9)
        found = outliers.find_outliers(images, ["lung"])
        assert [one.reasons[0].name for one in found].count("width / height") == 4
        assert "bright" in [one.image.image_id for one in found]

    def test_images_without_masks_take_part(self) -> None:
        images = [make_facts(f"x{number}", labels={}, mean=number / 10) for number in range(5)]
        assert outliers.find_outliers(images, ["lung"])[0].image.image_id in ("x0", "x4")


class TestFindings:
    def test_nothing_stands_out(self) -> None:
        assert list_findings(make_audit(three_splits())) == []

    def test_duplicates_by_weight(self) -> None:
        images = three_splits()
        copy = make_facts("copy", image_sha256=images[0].image_sha256, phash=images[0].phash, split="val")
        near = make_facts("near", phash=images[1].phash, split="test")
        same = make_facts(
            "same", image_sha256=images[2].image_sha256, phash=images[2].phash, mask_sha256=images[2].mask_sha256
        )
        found = texts(list_findings(make_audit([*images, copy, near, same])))
        assert found == [
            "mend: 1 pair of images with the same bytes stands across splits (train-0 = copy): the shards "
            "keep the first of each alone.",
            "mend: 1 pair of images that look the same stands across splits (train-1 ~ near): put them "
            "in one split, or give them one patient.",
            "look: 1 pair of images with the same bytes, within train (train-2 = same): the shards keep the first "
            "of each alone.",
            "look: 1 pair of images with the same bytes has different masks (train-0 = copy).",
        ]

    def test_torn_patients(self) -> None:
        found = texts(
            list_findings(
                make_audit(three_splits(), split_conflicts={f"p{number}": ["train", "val"] for number in range(5)})
            )
        )
        assert found[0] == "mend: Patient p0 stands in train and val: correct the column split."
        assert found[3] == "mend: 2 more patients stand in several splits."

    def test_masks(self) -> None:
        def lung(**change: Any) -> dict[str, LabelFacts]:
            plain = {key: getattr(LUNG, key) for key in LabelFacts.__slots__}
            return {"lung": LabelFacts(**{**plain, **change})}

        images = three_splits(8)
        images += [make_facts(f"one-{number}", labels=lung(parts=1)) for number in range(5)]
        images += [make_facts("speck", labels=lung(specks=7)), make_facts("cut", labels=lung(touches=("top", "left")))]
        images += [make_facts("empty", labels=lung(parts=0, share=0.0))]
        assert usual_parts(images, "lung") == 2
        assert texts(list_findings(make_audit(images))) == [
            "look: 1 mask of 32 has no lung.",
            "look: 5 masks have 1 part of lung where most have 2 (one-0, one-1, one-2, ...).",
            "look: 1 mask has specks of lung, 7 in all (speck).",
            "look: 1 mask of lung touches the image border (top 1, left 1).",
        ]

    def test_no_usual_number_of_parts(self) -> None:
        images = [
            make_facts(f"x{number}", labels={"lung": LabelFacts(0.3, 1 + number % 3, 0, None, (), 0.5, 0.5, 0.5)})
            for number in range(9)
        ]
        assert usual_parts(images, "lung") is None

    def test_twelve_bits_in_sixteen(self) -> None:
        # 4095 of 65535 is 15.93 of 255.
        images = three_splits(bits=16, brightest=16 / 255, high=0.6)
        assert texts(list_findings(make_audit(images))) == [
            "mend: 12 16-bit files use only values below 4096, and so are almost black: set corpus.white to 4095."
        ]
        images[0] = make_facts("bright", bits=16, brightest=17 / 255)
        assert list_findings(make_audit(images)) == []

    def test_what_is_set_aside_and_left(self) -> None:
        images = [*three_splits(), make_facts("bare", labels={}, mask_sha256="", split=None)]
        bad = [SetAside("a", "/a.png", "unreadable", "truncated")]
        assert texts(list_findings(make_audit(images, set_aside=bad, ignored=2))) == [
            "mend: 1 file cannot be used (unreadable): the file cannot be read or decoded.",
            "know: 1 image has no mask and no use in training.",
            "know: 2 files of other kinds lie in the corpus.",
        ]

    def test_sides_and_groups(self) -> None:
        images = [
            make_facts(f"x{at}", split="train" if at < 6 else "val", groups={"sex": "fm"[at % 6 == 0 and at < 6]})
            for at in range(9)
        ]
        assert texts(list_findings(make_audit(images))) == [
            "look: No image stands in test.",
            "know: 1 image has sex m, none of them in val.",
        ]

    def test_exposure_and_kinds(self) -> None:
        images = three_splits()
        images[0] = make_facts("black", black=0.5, bits=16, spacing=(0.1, 0.1))
        images[1] = make_facts("flat", low=0.4, high=0.5, format="jpeg")
        assert texts(list_findings(make_audit(images))) == [
            "look: 1 image has more than 20 % black pixels (black).",
            "look: 1 image has little contrast: 98 % of the pixels within 0.15 of the range (flat).",
            "know: The corpus mixes bits per value (8: 11, 16: 1).",
            "know: The corpus mixes file formats (png: 11, jpeg: 1).",
            "know: The pixel spacing is known of 1 of 12 images.",
        ]


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


class TestTable:
    def test_several_labels_and_groups(self, tmp_path: Path) -> None:
        corpus = CorpusSettings(root="x", classes=3, class_names=["cytoplasm", "nucleus"])
        labels = {"cytoplasm": LUNG, "nucleus": LabelFacts(0.1, 1, 0, None, ("top", "left"), 0.4, 0.5, 0.5)}
        one = make_facts("x1", labels=labels, groups={"bits": "many", "sex": "f"}, spacing=(0.1, 0.2))
        bad = SetAside("x2", "/x2.png", "unreadable", "truncated, and more")
        text = table_of(make_audit([one], corpus=corpus, set_aside=[bad], outliers=[]), tmp_path)
        first, second = csv.DictReader(io.StringIO(text))
        assert (first["share_nucleus"], first["touches_nucleus"], first["parts_cytoplasm"]) == ("0.1", "top left", "2")
        assert (first["bits"], first["group_bits"], first["sex"]) == ("8", "many", "f")
        assert (first["spacing_row"], first["spacing_column"], first["reason"]) == ("0.1", "0.2", "")
        assert (second["image_id"], second["place"], second["detail"]) == ("x2", "/x2.png", "truncated, and more")


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
