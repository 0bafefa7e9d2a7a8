"""The page for judging predicted masks."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from lungseg_ray.config import ReviewJob
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.review import review
from tests.jobs.predictions import COLUMNS, write_prediction
from tests.page.test_browser import _ARGUMENTS, CHROMIUM


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Five images, one of which was set aside and one of which has vanished, and what was predicted of them."""
    (tmp_path / "images").mkdir()
    masks, doubts = {}, {}
    for number, expected in enumerate([0.95, 0.71, 0.88, 0.93]):
        image, mask = draw(number, seed=0, size=120)
        name = f"{'abcd'[number]} <b>.png"
        if number != 3:
            cv2.imwrite(str(tmp_path / "images" / name), image)
        masks[name], doubts[name] = mask, (expected, number == 1)
    return write_prediction(tmp_path, masks, doubts=doubts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


def test_a_review_with_the_keyboard(predicted: Path, browser: Browser, tmp_path: Path) -> None:
    page_, shown, known = review(ReviewJob(predictions=str(predicted)))
    assert (shown, known) == (4, 4)
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 700})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"file://{page_.path}")

    # The mask of which the least is expected comes first, with a picture and an outline.
    assert page.locator("#facts").inner_text().split("\n")[1] == "b <b>.png"
    assert "0.710" in page.locator("#facts").inner_text()
    assert "unlike those of training" in page.locator("#facts").inner_text()
    assert page.locator("#picture path").count() == 1
    box = page.locator("#picture path").bounding_box()
    whole = page.locator("#picture svg").bounding_box()
    assert box
    assert whole
    mask = cv2.imread(str(predicted / "masks/b <b>.png.png"), 0)
    assert mask is not None
    columns = np.flatnonzero(mask.any(axis=0))
    assert (box["x"] - whole["x"]) / whole["width"] == pytest.approx(columns[0] / 120, abs=0.02)
    assert box["width"] / whole["width"] == pytest.approx((columns[-1] + 1 - columns[0]) / 120, abs=0.02)

    page.keyboard.press("o")
    assert not page.locator("#picture path").is_visible()
    for key in ("o", "w", "r", "ArrowLeft"):
        page.keyboard.press(key)
    # A key that is held down counts once, and capitals count, too.
    for _ in range(3):
        page.keyboard.down("U")
    page.keyboard.up("U")
    # An image that has vanished is named, without a picture.
    assert "not shown" in page.locator("#facts").inner_text()
    assert page.locator("#count").inner_text() == "image 3 of 4, 2 judged"

    # The verdicts outlive the page.
    page.reload()
    assert page.locator("#count").inner_text() == "image 3 of 4, 2 judged"
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == "review.csv"
    download.value.save_as(tmp_path / "review.csv")
    with (tmp_path / "review.csv").open() as file:
        assert list(csv.reader(file)) == [["image", "verdict"], ["b <b>.png", "wrong"], ["c <b>.png", "unsure"]]
    assert wrong == []


def test_it_fits_on_a_phone(predicted: Path, browser: Browser) -> None:
    page_, *_ = review(ReviewJob(predictions=str(predicted), most=2))
    page = browser.new_context(offline=True, viewport={"width": 360, "height": 740}, has_touch=True).new_page()
    page.goto(f"file://{page_.path}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="wrong").tap()
    assert page.locator("#count").inner_text() == "image 2 of 2, 1 judged"


def test_images_that_are_worth_annotating(tmp_path: Path) -> None:
    """Of three copies of the worst image one comes first; the others come after an image that is unlike it."""
    (tmp_path / "images").mkdir()
    masks, doubts = {}, {}
    drawn = {"a.png": 0, "b.png": 0, "c.png": 0, "d.png": 1}
    for (name, number), expected in zip(drawn.items(), [0.5, 0.51, 0.52, 0.9], strict=True):
        image, masks[name] = draw(number, seed=0, size=120)
        cv2.imwrite(str(tmp_path / "images" / name), image)
        doubts[name] = (expected, False)
    predictions = str(write_prediction(tmp_path, masks, doubts=doubts))
    shown = {}
    for order in ("expected", "annotate"):
        page, *_ = review(ReviewJob.model_validate({"predictions": predictions, "most": 2, "order": order}))
        text = page.read_text()
        shown[order] = [name for name in drawn if f'"{name}"' in text]
    assert shown == {"expected": ["a.png", "b.png"], "annotate": ["a.png", "d.png"]}
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="none of the images that were predicted can be read"):
        review(ReviewJob.model_validate({"predictions": predictions, "order": "annotate"}))


def test_what_is_missing_is_said(predicted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no model.json there"):
        review(ReviewJob(predictions=str(tmp_path)))
    table = (predicted / "predictions.csv").read_text()
    (predicted / "predictions.csv").write_text(table.replace("expected_dice", "something"))
    with pytest.raises(UserError, match="does not say which Dice is expected"):
        review(ReviewJob(predictions=str(predicted)))
    (predicted / "predictions.csv").write_text(f"{','.join(COLUMNS)}\ne.png,set aside,unreadable,,,,,,\n")
    with pytest.raises(UserError, match="all images were set aside"):
        review(ReviewJob(predictions=str(predicted)))
    (predicted / "predictions.csv").unlink()
    with pytest.raises(UserError, match="has not finished"):
        review(ReviewJob(predictions=str(predicted)))
    (predicted / "model.json").write_text("[]")
    with pytest.raises(UserError, match="found something else"):
        review(ReviewJob(predictions=str(predicted)))
