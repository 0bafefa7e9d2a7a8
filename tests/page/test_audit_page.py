from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest

from lungseg_ray.audit.facts import ImageFacts, LabelFacts
from lungseg_ray.audit.result import Audit
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.record import MaskSource, Record, SetAside
from lungseg_ray.page.render import write_audit_page
from lungseg_ray.storage import locate
from tests.audit.helpers import make_audit, make_facts, three_splits
from tests.page.test_pages import IMAGE, SCRIPT, body, flat


def written(audit: Audit, folder: Path) -> str:
    page = write_audit_page(audit, locate(str(folder)))
    assert page.uri == f"{folder}/audit.html"
    return body(page)


def files(folder: Path, images: list[ImageFacts]) -> dict[str, Record]:
    """A drawn chest behind each of some images."""
    records = {}
    for number, one in enumerate(images):
        image, mask = draw(number, seed=0, size=300)
        for name, pixels in (("image", image), ("mask", mask * 255)):
            cv2.imwrite(str(folder / f"{name}-{number}.png"), pixels)
        place = str(folder / f"image-{number}.png")
        records[one.image_id] = Record(
            one.image_id, place, (MaskSource(place.replace("image-", "mask-")),), one.patient_id
        )
    return records


@pytest.fixture(scope="module")
def rich_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("page")
    images = three_splits(groups={"finding": IMAGE})
    images[0] = make_facts(SCRIPT, groups={"finding": "normal"}, patient_id=IMAGE, mean=0.9, spacing=(0.1, 0.1))
    images += [make_facts("copy", image_sha256=images[0].image_sha256, patient_id=IMAGE, split="val")]
    images += [make_facts("bare", labels={}, mask_sha256="", split=None)]
    found = make_audit(
        images,
        records=files(folder, images),
        set_aside=[SetAside(IMAGE, SCRIPT, "unreadable", SCRIPT)],
        split_conflicts={IMAGE: ["train", "val"]},
    )
    return folder / "audit.html", written(found, folder)


class TestPage:
    def test_chapters_in_order(self, rich_page: tuple[Path, str]) -> None:
        assert re.findall(r"<h2>(.*?)</h2>", rich_page[1]) == [
            "Result",
            "Files",
            "Groups",
            "Exposure",
            "Masks",
            "Duplicates",
            "Patients",
            "Unlike the rest",
        ]
        assert len(re.findall(r'<p class="caption">\w', rich_page[1])) == 8

    def test_headline(self, rich_page: tuple[Path, str]) -> None:
        text = flat(rich_page[1])
        assert "Images 14 that can be read; layout pairs" in text
        assert "With a mask 13 1 without" in text
        assert "In train 4 images of 4 patients" in text
        assert "1 pair of images with the same bytes stands across splits" in text

    def test_foreign_text_is_text(self, rich_page: tuple[Path, str]) -> None:
        whole = rich_page[0].read_text()
        assert SCRIPT not in whole
        assert IMAGE not in whole
        assert "&lt;script&gt;window.planted" in rich_page[1]

    def test_pictures(self, rich_page: tuple[Path, str]) -> None:
        # A pair, and the outliers: by mean intensity only one image has any distance.
        assert rich_page[1].count('src="data:image/jpeg;base64,') == 3
        assert "mean intensity 0.9, median 0.5" in rich_page[1]
        assert "outline of lung" in rich_page[1]

    def test_asks_no_network(self, rich_page: tuple[Path, str]) -> None:
        assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', rich_page[1])
        assert rich_page[0].stat().st_size < 3 << 20

    def test_file_is_gone(self, tmp_path: Path) -> None:
        images = three_splits()
        images[0] = make_facts("gone", mean=0.9)
        assert "The picture cannot be read again" in written(make_audit(images), tmp_path)


def test_nothing_stands_out(tmp_path: Path) -> None:
    text = flat(written(make_audit(three_splits()), tmp_path))
    for words in (
        "Nothing stands out.",
        "No file is set aside.",
        "No image stands in the corpus more than once.",
        "Each image is a patient of its own",
        "All images are alike in all figures.",
    ):
        assert words in text


def test_several_labels(tmp_path: Path) -> None:
    corpus = CorpusSettings(root="x", channels=3, classes=3, class_names=["cytoplasm", "nucleus"])
    marked = LabelFacts(0.1, 1, 0, None, ("top",), 0.4, 0.5, 0.5)
    images = three_splits(labels={"cytoplasm": marked, "nucleus": marked})
    page = written(make_audit(images, corpus=corpus, outliers=[]), tmp_path)
    assert re.findall(r"<h3>(cytoplasm|nucleus)</h3>", page) == ["cytoplasm", "nucleus"]
    assert "lung" not in flat(page).replace("lungseg-ray", "")


def test_no_masks_at_all(tmp_path: Path) -> None:
    images = [make_facts(f"x{number}", labels={}, mask_sha256="", split=None) for number in range(3)]
    assert "<h2>Masks</h2>" not in written(make_audit(images), tmp_path)
