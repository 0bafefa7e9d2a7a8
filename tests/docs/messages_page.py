"""Writes the right-hand sides of docs/messages.md: what jobs say of ten corpora that are not as they should be.

`python -m tests.docs.messages_page` writes them anew. The left-hand sides are what an earlier version said, and stay.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.errors import UserError
from tests.corpus.kinds import png
from tests.corpus.trees import chest
from tests.helpers import ROOT

PAGE = ROOT / "docs/messages.md"
MISTAKES: dict[str, Callable[[Path], dict[str, object]]] = {}


def mistake(title: str) -> Callable[[Callable[[Path], dict[str, object]]], Callable[[Path], dict[str, object]]]:
    def add(make: Callable[[Path], dict[str, object]]) -> Callable[[Path], dict[str, object]]:
        MISTAKES[title] = make
        return make

    return add


def draw(
    root: Path, image: str, *masks: str, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda mask: mask
) -> None:
    """Draws six images, and masks of each; "{}" in their paths stands for a number."""
    for number in range(6):
        pixels, mask = chest(number, 64)
        for place in (image, *masks):
            target = root / place.format(number)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(png(pixels if place == image else change(mask)))


@mistake("The path is wrong.")
def wrong_path(root: Path) -> dict[str, object]:
    draw(root, "x-rays/images/{}.png", "x-rays/masks/{}.png")
    return {"root": str(root / "xrays")}


@mistake("The masks lie in a folder whose name says nothing, and under other names.")
def unknown_folder(root: Path) -> dict[str, object]:
    draw(root, "images/x{}.png", "final/case_{}_v2.png")
    return {"root": str(root)}


@mistake("There are images, and no masks.")
def no_masks(root: Path) -> dict[str, object]:
    draw(root, "images/x{}.png")
    return {"root": str(root)}


@mistake("The names of masks are those of no image.")
def other_names(root: Path) -> dict[str, object]:
    draw(root, "images/scan{}.png", "masks/{}9731.png")
    return {"root": str(root)}


@mistake("The table names images, and its column of masks has a name of its own.")
def table(root: Path) -> dict[str, object]:
    draw(root, "scans/{}.png", "lungs/{}.png")
    rows = "".join(f"scans/{number}.png,yes\n" for number in range(6))
    (root / "list.csv").write_text(f"scan,segmented\n{rows}")
    return {"root": str(root / "list.csv")}


@mistake("Each image has two masks, of different things.")
def kinds(root: Path) -> dict[str, object]:
    draw(root, "images/{}.png", "heart masks/{}.png", "infection masks/{}.png")
    return {"root": str(root)}


@mistake("Masks have three values.")
def values(root: Path) -> dict[str, object]:
    def three(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        left = mask.copy()
        left[:, 32:] = 0
        return (mask // 255 * 2 - left // 255).astype(np.uint8)

    draw(root, "images/{}.png", "masks/{}.png", change=three)
    return {"root": str(root)}


@mistake("Two people drew each mask.")
def annotators(root: Path) -> dict[str, object]:
    draw(root, "images/{}.png", "masks/{}_reader1.png", "masks/{}_reader2.png")
    return {"root": str(root)}


@mistake("Masks are inverted.")
def inverted(root: Path) -> dict[str, object]:
    draw(root, "images/{}.png", "masks/{}.png", change=lambda mask: 255 - mask)
    return {"root": str(root)}


@mistake("The table of run lengths is the corpus, and the images are elsewhere.")
def runs(root: Path) -> dict[str, object]:
    draw(root, "images/{}.png")
    (root / "rle.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{number},5 9\n" for number in range(6)))
    return {"root": str(root / "rle.csv")}


def said(settings: dict[str, object], root: Path) -> str:
    """What a job says: why it refuses the corpus, or what it warns of; with "…" for the folder."""
    try:
        listing = list_corpus(CorpusSettings.model_validate(settings))
        lines = [*listing.warnings, *listing.glances]
        text = "\n".join([f"{len(listing.records)} images are taken.", *lines])
    except UserError as error:
        text = str(error)
    return shortened(text.replace(str(root), "…"))


def shortened(text: str) -> str:
    """Returns a message without the list of layouts, which is long and the same in all."""
    return re.sub(r"\n  manifest: .*?\n  jsrt: [^\n]*", "\n  ... (the list)", text, flags=re.S)


def results() -> dict[str, str]:
    """What a job says now of each mistake, by its title."""
    found = {}
    for title, make in MISTAKES.items():
        root = Path(tempfile.mkdtemp(prefix="lungseg-messages-"))
        try:
            found[title] = said(make(root), root)
        finally:
            shutil.rmtree(root)
    return found


def page(before: str) -> str:
    """The page with what jobs say now in place of what it says that they do."""
    found = results()

    def renewed(match: re.Match[str]) -> str:
        return f"{match[1]}{found[match[2]]}\n```\n"

    return re.sub(r"(## (?:\d+\. )?(.+?)\n.*?Now:\n\n```text\n).*?\n```\n", renewed, before, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
