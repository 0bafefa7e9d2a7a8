"""The pages in a real browser, which must show all of them without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lungseg_ray.page.render import write_run_page, write_sweep_page
from lungseg_ray.sweep.ledger import Sweep
from tests.page.test_pages import IMAGE, make_run, make_sweep

CHROMIUM = "/usr/bin/chromium"
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_INK = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.reduce((sum, value, at) => sum + (at % 4 == 3 && value > 0 && pixels[at - 1] < 200), 0);
}"""
"""Counts the dark pixels of a chart."""
_POINT = """([chart, at]) => {
    const place = document.querySelectorAll(".chart")[chart];
    const view = [...Bokeh.index].find(view => place.contains(view.el));
    const renderer = view.model.renderers.at(-1);
    const [x, y] = [renderer.glyph.x.field, renderer.glyph.y.field].map(name => renderer.data_source.data[name][at]);
    const box = view.el.getBoundingClientRect();
    return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)];
}"""
"""Where a point of a chart is on the screen."""

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    # The page alone, far from the folder that it was made from.
    sweep = make_sweep(tmp_path_factory.mktemp("made"))
    shutil.copy(write_sweep_page(sweep.place).path, tmp_path_factory.mktemp("alone") / "report.html")
    return sweep


@pytest.fixture(params=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """An empty window; whatever it complains of or asks a network for fails the test in the end."""
    phone = request.param == "phone"
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, is_mobile=phone, has_touch=phone)  # type: ignore[arg-type]
    page = context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else trouble.append(asked.url),
    )
    yield page
    assert page.evaluate("window.planted") is None
    assert trouble == []
    context.close()


def show(page: Page, path: str, *, charts: int) -> None:
    page.goto(f"file://{path}")
    page.locator(".dt-search input").first.wait_for()
    page.locator(".chart canvas").last.wait_for()
    page.wait_for_function("Bokeh.documents.every(one => one.is_idle)")
    canvases = page.locator(".chart canvas").all()
    ink = [canvas.evaluate(_INK) for canvas in canvases]
    # The points lie on the lower one of two canvases.
    assert sum(count > 500 for count in ink) == charts
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def column(page: Page, title: str) -> list[str]:
    """What a column of the trials shows, from the top down."""
    titles = [text.strip() for text in page.locator("table.sortable th .dt-column-title").all_inner_texts()]
    cells = page.locator(f"table.sortable tbody td:nth-child({titles.index(title) + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_sweep(page: Page, sweep: Sweep) -> None:
    show(page, f"{sweep.place}/report.html", charts=10)
    trials = sweep.trials()
    assert column(page, "trial") == [str(trial.number) for trial in trials]

    title = page.locator(".dt-column-title").get_by_text("IoU", exact=True)
    for order in ("ascending", "descending"):
        title.click()
        page.locator(f'th[aria-sort="{order}"]').wait_for()
    scores = sorted((trial.score for trial in trials if trial.score is not None), reverse=True)
    assert column(page, "IoU") == [*(f"{score:.4f}" for score in scores), "–"]

    page.locator(".dt-search input").first.fill("refused")
    assert column(page, "trial") == ["5"]
    page.locator(".dt-search input").first.fill("")
    assert len(column(page, "trial")) == 18

    page.locator("th.filtered .dtcc-button").nth(1).click()
    values = page.locator(".dtcc-list-buttons button")
    assert values.all_inner_texts() == [IMAGE, "resnet18", "timm-regnety_002"]
    values.nth(1).click()
    # Four of the search, and three of a finalist.
    assert column(page, "encoder") == ["resnet18"] * 7


def test_words_at_a_point(page: Page, sweep: Sweep) -> None:
    show(page, f"{sweep.place}/report.html", charts=10)
    page.locator(".chart").first.scroll_into_view_if_needed()
    # Of the first chart, the pair whose encoder is the planted picture.
    x, y = page.evaluate(_POINT, [0, 3])
    if page.evaluate("navigator.maxTouchPoints"):
        page.touchscreen.tap(x, y)
    else:
        page.mouse.move(x, y)
    words = page.locator(".bk-tooltip-content")
    words.wait_for()
    assert words.inner_text().startswith(f"{IMAGE}, lr 0.004, both after 2 epochs")


def test_run(page: Page, tmp_path: Path) -> None:
    show(page, write_run_page(make_run(tmp_path).place).path, charts=3)
    assert page.locator("h1").inner_text() == "Run a<b>run"
    assert column(page, "epoch") == ["1", "2", "3", "4", "5", "6"]
    assert page.locator("img").evaluate("image => image.naturalWidth") == 400
