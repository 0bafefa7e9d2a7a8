"""Every kind of file and of corpus, read as shard, evaluate and predict read it; docs/input.md shows what came out.

`python -m tests.corpus.test_input_page` writes the tables anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.read import read_image, read_sample
from lungseg_ray.corpus.record import REASONS
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import BadFileError, UserError
from tests.corpus import kinds
from tests.corpus.kinds import USED, Kind
from tests.corpus.trees import nobody
from tests.helpers import ROOT

PAGE = ROOT / "docs/input.md"
GOOD = kinds.png(kinds.IMAGE), kinds.png(kinds.WHITE)


@dataclass(frozen=True)
class Found:
    """What came of an image: `USED`, a reason, or "refused" where the whole corpus was; and what was said."""

    outcome: str
    detail: str = ""


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def image_of(kind: Kind, root: Path) -> Path:
    return write(root, {f"images/x{kind.suffix}": kind.make(), "masks/x.png": GOOD[1]})


def mask_of(kind: Kind, root: Path) -> Path:
    return write(root, {"images/x.png": GOOD[0], f"masks/x{kind.suffix}": kind.make()})


def sharded(root: Path, **settings: object) -> dict[str, Found]:
    """By image id, what shard and evaluate make of a corpus."""
    corpus = CorpusSettings.model_validate({"root": str(root), "layout": "pairs", **settings})
    try:
        listing = list_corpus(corpus)
        assign_splits(listing.records, corpus.split.model_copy(update={"val": 0.0, "test": 0.0}))
    except UserError as error:
        return {"": Found("refused", str(error))}
    found = {one.image_id: Found(one.reason, one.detail) for one in listing.set_aside}
    for record in listing.records:
        try:
            read_sample(record, listing.corpus, longer_side=1024)
            found[record.image_id] = Found(USED)
        except BadFileError as error:
            found[record.image_id] = Found(error.reason, error.detail)
    return found


def predicted(root: Path) -> Found:
    """What predict makes of the one image, with a model that was trained on this corpus."""
    white = list_corpus(CorpusSettings.model_validate({"root": str(root), "layout": "pairs"})).corpus.white
    try:
        read_image(str(next((root / "images").iterdir())), channels=1, longer_side=1024, white=white)
    except BadFileError as error:
        return Found(error.reason, error.detail)
    return Found(USED)


@pytest.mark.parametrize("kind", [*kinds.GOOD_IMAGES, *kinds.BAD_IMAGES], ids=lambda kind: kind.name)
def test_images(kind: Kind, tmp_path: Path) -> None:
    root = image_of(kind, tmp_path)
    # One reader for all: the same words, too. An image without a mask may be turned as it asks.
    if kind.outcome != "rotated":
        assert sharded(root) == {"x": predicted(root)}
    assert sharded(root)["x"].outcome == kind.outcome
    assert predicted(root).outcome == (USED if kind.outcome == "rotated" else kind.outcome)
    assert kind.outcome in (USED, *REASONS)


@pytest.mark.parametrize("kind", [*kinds.GOOD_MASKS, *kinds.BAD_MASKS], ids=lambda kind: kind.name)
def test_masks(kind: Kind, tmp_path: Path) -> None:
    assert sharded(mask_of(kind, tmp_path))["x"].outcome == kind.outcome


# What may be wrong with a corpus as a whole: its name, what is there, what becomes of the image "x" (or of all: "").
Corpus = Callable[[Path], dict[str, Found]]
CORPORA: dict[str, tuple[Corpus, str]] = {}


def corpus(name: str, outcome: str) -> Callable[[Corpus], Corpus]:
    def keep(make: Corpus) -> Corpus:
        CORPORA[name] = make, outcome
        return make

    return keep


def pair(name: str = "x") -> dict[str, bytes]:
    return {f"images/{name}.png": GOOD[0], f"masks/{name}.png": GOOD[1]}


@corpus("image without a mask", "no_mask")
def no_mask(root: Path) -> dict[str, Found]:
    return sharded(write(root, {**pair("good"), "images/x.png": GOOD[0]}))


@corpus("mask without an image", "no_image")
def no_image(root: Path) -> dict[str, Found]:
    return sharded(write(root, {**pair("good"), "masks/x.png": GOOD[1]}))


@corpus("two images of one name", "ambiguous")
def two_of_a_name(root: Path) -> dict[str, Found]:
    return sharded(write(root, {**pair("good"), **pair(), "images/x.jpg": kinds.jpeg()}))


@corpus("index.csv names an image that is not there", "no_image")
def index_names_nothing(root: Path) -> dict[str, Found]:
    return sharded(write(root, {**pair("good"), "index.csv": b"stem,patient\nx,p1\n"}))


@corpus("one patient in two splits", "refused")
def torn_patient(root: Path) -> dict[str, Found]:
    table = b"stem,patient,split\nx,p1,train\ny,p1,test\n"
    return sharded(write(root, {**pair("x"), **pair("y"), "index.csv": table}))


@corpus("file name that is not UTF-8", "bad_name")
def not_utf_8(root: Path) -> dict[str, Found]:
    write(root, pair("good"))
    (Path(os.fsdecode(os.fsencode(root / "images") + b"/\xff\xfe.png"))).write_bytes(GOOD[0])
    return {key.replace("\\xff\\xfe", "x"): value for key, value in sharded(root).items()}


@corpus("file name of 255 bytes, with spaces, quotes and Chinese", USED)
def long_name(root: Path) -> dict[str, Found]:
    name = "肺 'a\",b" + "n" * (255 - 4 - len("肺 'a\",b".encode()))
    return {"x": sharded(write(root, pair(name)))[name]}


@corpus("folder that links to the folder above it", USED)
def linked_in_a_circle(root: Path) -> dict[str, Found]:
    write(root, pair())
    (root / "images/circle").symlink_to("..")
    return sharded(root)


@corpus("file that links to itself", "unreadable")
def linked_to_itself(root: Path) -> dict[str, Found]:
    write(root, {**pair("good"), "masks/x.png": GOOD[1]})
    (root / "images/x.png").symlink_to("x.png")
    return sharded(root)


@corpus("link to a file that is gone", "unreadable")
def dangling(root: Path) -> dict[str, Found]:
    write(root, {**pair("good"), "masks/x.png": GOOD[1]})
    (root / "images/x.png").symlink_to("gone.png")
    return sharded(root)


@corpus("file that may not be read", "unreadable")
def forbidden(root: Path) -> dict[str, Found]:
    write(root, pair())
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.geteuid() and folder.parent != folder:
            folder.chmod(folder.stat().st_mode | 0o055)
    (root / "images/x.png").chmod(0)
    with nobody():
        return sharded(root)


def manifest(root: Path, text: str, **settings: object) -> dict[str, Found]:
    write(root, {**pair("good"), **pair(), "list.csv": text.encode()})
    return sharded(root / "list.csv", layout="manifest", **settings)


GOOD_ROW = "image_uri,mask_uri\nimages/good.png,masks/good.png\n"


@corpus("manifest without a column of masks", "refused")
def no_column(root: Path) -> dict[str, Found]:
    return manifest(root, "image_uri,outline\nimages/x.png,masks/x.png\n")


@corpus("manifest with 100 000 rows of one image", "refused")
def many_rows(root: Path) -> dict[str, Found]:
    return manifest(root, "image_uri,mask_uri\n" + "images/x.png,masks/x.png\n" * 100_000)


@corpus("manifest that leaves its folder: ../../x.png", "bad_path")
def escaping(root: Path) -> dict[str, Found]:
    return manifest(root, GOOD_ROW + "../../x.png,masks/x.png\n")


@corpus("manifest that names a place elsewhere: /etc/x.png", "bad_path")
def absolute(root: Path) -> dict[str, Found]:
    return manifest(root, GOOD_ROW + "/etc/x.png,masks/x.png\n")


@corpus("the same with corpus.outside, where the file is not there", "unreadable")
def allowed(root: Path) -> dict[str, Found]:
    return manifest(root, GOOD_ROW + "/nowhere/x.png,masks/x.png\n", outside=True)


@corpus("manifest with a URI of an unknown scheme: ftp://host/x.png", "bad_path")
def unknown_scheme(root: Path) -> dict[str, Found]:
    return manifest(root, GOOD_ROW + "ftp://host/x.png,masks/x.png\n", outside=True)


@corpus("manifest with a password in a URI", "bad_path")
def password(root: Path) -> dict[str, Found]:
    found = manifest(root, GOOD_ROW + "s3://key:secret@bucket/x.png,masks/x.png\n", outside=True)
    assert "secret" not in str(found)
    return found


@corpus("manifest with a row that names a folder", "unreadable")
def folder(root: Path) -> dict[str, Found]:
    (root / "x.png").mkdir()
    return manifest(root, GOOD_ROW + "x.png,masks/x.png\n")


@corpus("manifest with a row that names a pipe", "unreadable")
def pipe(root: Path) -> dict[str, Found]:
    os.mkfifo(root / "x.png")
    return manifest(root, GOOD_ROW + "x.png,masks/x.png\n")


@corpus("manifest that is not text", "refused")
def not_text(root: Path) -> dict[str, Found]:
    return sharded(write(root, {"list.csv": GOOD[0]}) / "list.csv", layout="manifest")


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(name: str, tmp_path: Path) -> None:
    make, outcome = CORPORA[name]
    found = make(tmp_path)
    assert found["" if outcome == "refused" else "x"].outcome == outcome
    assert outcome in (USED, "refused", *REASONS)
    # Nothing else is lost on the way.
    assert found.get("good", Found(USED)).outcome == USED


def test_the_page_shows_what_comes_out(tmp_path: Path) -> None:
    assert page(tmp_path) == PAGE.read_text(), "write it anew: python -m tests.corpus.test_input_page"


def page(root: Path) -> str:
    """The page with its tables as they come out now."""
    images = [*kinds.GOOD_IMAGES, *kinds.BAD_IMAGES]
    masks = [*kinds.GOOD_MASKS, *kinds.BAD_MASKS]
    tables = {
        "images": [(kind.name, sharded(image_of(kind, root / f"i{n}"))["x"]) for n, kind in enumerate(images)],
        "masks": [(kind.name, sharded(mask_of(kind, root / f"m{n}"))["x"]) for n, kind in enumerate(masks)],
        "corpora": [],
    }
    for number, (name, (make, outcome)) in enumerate(CORPORA.items()):
        place = root / f"c{number}"
        place.mkdir()
        found = make(place)["" if outcome == "refused" else "x"]
        tables["corpora"].append((name, Found(found.outcome, found.detail.replace(str(place), "…"))))
    text = PAGE.read_text()
    for title, rows in tables.items():
        lines = ["| kind | outcome | what is said |", "|---|---|---|"]
        lines += [f"| {name} | {found.outcome} | {_cell(found.detail)} |" for name, found in rows]
        marks = f"<!-- {title} -->", f"<!-- end of {title} -->"
        body = "\n".join([marks[0], *lines, marks[1]])
        before, rest = text.split(marks[0])
        text = before + body + rest.split(marks[1])[1]
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder_of_kinds:
        PAGE.write_text(page(Path(folder_of_kinds)))
