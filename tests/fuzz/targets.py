"""What is fuzzed, and what must hold whatever the bytes are: the errors that are meant, in few words that are ours."""

from __future__ import annotations

import builtins
import io
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydicom import uid

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import decode, dicom
from lungseg_ray.corpus.annotations.documents import read_annotation, read_collection
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.picture import MOST_PIXELS
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import REASONS, SPLITS
from lungseg_ray.corpus.segmentation import draw_segmentation, is_segmentation
from lungseg_ray.errors import BadFileError, UserError
from tests.corpus.kinds import png
from tests.fuzz import seeds
from tests.helpers import mapped

LABELS: dict[int | str, int | str] = {value: value % 3 for value in range(256)}
LONGEST_REASON, LONGEST_ERROR = 1000, 12_000
"""Characters of what is said of a file that is set aside, and of a table, whose columns are named."""


@dataclass(frozen=True)
class Target:
    """One thing that reads bytes.

    Attributes:
        run: reads them; raises nothing, whatever they are, unless something is wrong with what reads them.
        seeds: small files by name.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Mapping[str, bytes]]


def image(data: bytes) -> None:
    """Any file as an image, reduced."""
    try:
        found = decode.decode_image(data, channels=3, longer_side=64)
    except BadFileError as error:
        _check_words(error, data)
        return
    pixels = found.pixels
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert max(pixels.shape[:2]) <= 64
    assert 1 <= found.height * found.width <= MOST_PIXELS
    assert 1 <= found.bits <= 64
    assert found.spacing is None or all(0 < side < 100 for side in found.spacing)


def mask(data: bytes) -> None:
    """Any file as a mask of any values."""
    try:
        found = decode.decode_mask(data, mapped(LABELS))
    except BadFileError as error:
        _check_words(error, data)
        return
    assert found.dtype == np.uint8
    assert found.ndim == 2
    assert 1 <= found.size <= MOST_PIXELS
    assert found.max() <= 2


def tags(data: bytes) -> None:
    """Any file as DICOM, without its pixels."""
    try:
        found = dicom.read_tags(io.BytesIO(data))
    except BadFileError as error:
        _check_words(error, data)
        return
    assert found.groups.keys() <= {"sex", "view", "modality"}
    assert all(1 <= len(value) <= 4 for value in found.groups.values())
    found.patient.encode()
    found.study.encode()


def manifest_csv(data: bytes) -> None:
    """A manifest that is said to be CSV."""
    _list_table("list.csv", data)


def manifest_parquet(data: bytes) -> None:
    """A manifest that is said to be Parquet."""
    _list_table("list.parquet", data)


def index_csv(data: bytes) -> None:
    """The index beside images/ and masks/."""
    _list_table("index.csv", data)


def workbook(data: bytes) -> None:
    """A manifest that is said to be an Excel workbook."""
    _list_table("list.xlsx", data)


def annotation(data: bytes) -> None:
    """A JSON file that annotates one image."""
    try:
        found = read_annotation(data).rasterise(lambda name: len(name) % 3, height=24, width=20)
    except BadFileError as error:
        _check_words(error, data)
        return
    assert found.dtype == np.uint8
    assert found.ndim == 2
    assert found.max(initial=0) <= 2


def collection_json(data: bytes) -> None:
    """A JSON file that annotates many images."""
    _collection(data, ".json")


def collection_xml(data: bytes) -> None:
    """An XML file that annotates many images."""
    _collection(data, ".xml")


def run_table(data: bytes) -> None:
    """A table of run lengths beside images."""
    _list_tree({"rle.csv": data})


def value_table(data: bytes) -> None:
    """Names of the values of masks, beside images and masks."""
    _list_tree({"dataset.json": data}, masks=True)


def label_map(data: bytes) -> None:
    """The label map of CVAT beside images and masks."""
    _list_tree({"labelmap.txt": data}, masks=True)


def split_list(data: bytes) -> None:
    """The images to train, in a text file."""
    _list_tree({"train.txt": data}, masks=True)


def segmentation(data: bytes) -> None:
    """A DICOM segmentation."""
    try:
        if not is_segmentation(data):
            return
        found = draw_segmentation(data, lambda name: len(name) % 3)
    except BadFileError as error:
        _check_words(error, data)
        return
    assert found.dtype == np.uint8
    assert found.ndim == 2
    assert found.max(initial=0) <= 2


TARGETS = {
    "image": Target(image, seeds.images),
    "mask": Target(mask, seeds.images),
    "tags": Target(tags, seeds.dicoms),
    "manifest-csv": Target(manifest_csv, seeds.manifests),
    "manifest-parquet": Target(manifest_parquet, seeds.parquets),
    "index-csv": Target(index_csv, seeds.indexes),
    "workbook": Target(workbook, seeds.workbooks),
    "annotation": Target(annotation, seeds.shapes),
    "collection-json": Target(collection_json, seeds.shapes),
    "collection-xml": Target(collection_xml, seeds.drawings),
    "run-lengths": Target(run_table, seeds.run_lengths),
    "value-names": Target(value_table, seeds.value_names),
    "label-map": Target(label_map, seeds.label_maps),
    "split-list": Target(split_list, seeds.split_lists),
    "segmentation": Target(segmentation, seeds.segmentations),
}


def _check_words(error: BadFileError, data: bytes) -> None:
    assert error.reason in REASONS
    _check_message(str(error))
    cause = error.__context__
    while cause is not None:
        assert not isinstance(cause, MemoryError), "it asked for more memory than there is"
        cause = cause.__context__
    for word in set(re.findall(r"[A-Za-z]\w{2,}", error.detail)) - _our_words():
        # A word that is neither ours nor of the file is the name of an exception or of a type.
        assert word.encode() not in data, f"it quotes the file: {word}"


def _check_message(message: str, most: int = LONGEST_REASON) -> None:
    assert len(message) <= most, f"its message has {len(message)} characters"
    assert message.isprintable(), "its message holds control characters"


@cache
def _our_words() -> set[str]:
    """Those of our sources, of Python's own exceptions and of the standard's transfer syntaxes."""
    ours = [path.read_text() for path in Path(decode.__file__).parent.rglob("*.py")]
    names = [one.name for one in vars(uid).values() if isinstance(one, uid.UID) and one.is_transfer_syntax]
    return set(re.findall(r"\w+", " ".join([*ours, *names, *dir(builtins)])))


@cache
def _folder() -> Path:
    """A corpus of two images, in memory where the system has a place for it."""
    memory = Path("/dev/shm")
    keep = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    _kept.append(keep)
    root = Path(keep.name)
    for name in ("images/a.png", "masks/a.png", "images/b.png", "masks/b.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"never opened")
    return root


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _list_table(name: str, data: bytes) -> None:
    root = _folder()
    (root / name).write_bytes(data)
    is_index = name.startswith("index")
    try:
        found = list_corpus(
            CorpusSettings(root=str(root if is_index else root / name), layout="pairs" if is_index else "manifest")
        )
    except UserError as error:
        _check_message(str(error), LONGEST_ERROR)
        return
    _check_listing(found)


def _collection(data: bytes, suffix: str) -> None:
    try:
        found = read_collection(data, suffix)
        for drawing in (found or {}).values():
            mask = drawing.rasterise(lambda name: len(name) % 3, height=24, width=20)
            assert mask.dtype == np.uint8
            assert mask.max(initial=0) <= 2
    except BadFileError as error:
        _check_words(error, data)


@cache
def _tree(*, masks: bool) -> Path:
    """A corpus of two images, with masks or without, in memory where the system has a place for it."""
    memory = Path("/dev/shm")
    keep = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    _kept.append(keep)
    root = Path(keep.name)
    for folder in ("images", *(["masks"] if masks else [])):
        (root / folder).mkdir()
        for name in "ab":
            (root / folder / f"{name}.png").write_bytes(png((seeds.GREY > 60).astype(np.uint8) + (folder == "images")))
    return root


def _list_tree(files: Mapping[str, bytes], *, masks: bool = False) -> None:
    """Lists a small corpus with one more file, and reads its images and masks."""
    root = _tree(masks=masks)
    for name, data in files.items():
        (root / name).write_bytes(data)
    try:
        found = list_corpus(CorpusSettings(root=str(root)))
    except UserError as error:
        _check_lines(str(error))
        return
    finally:
        for name in files:
            (root / name).unlink()
    for name, data in files.items():
        (root / name).write_bytes(data)
    _check_listing(found)
    for line in (*found.recognition, *found.warnings):
        _check_message(line)
    for record in found.records:
        try:
            sample = read_sample(record, found.corpus, longer_side=64)
        except BadFileError as error:
            _check_reason(error)
            continue
        assert sample.mask.shape == sample.image.shape[:2]


def _check_reason(error: BadFileError) -> None:
    assert error.reason in REASONS
    _check_message(str(error))


def _check_lines(message: str) -> None:
    """Messages that list the layouts have several lines."""
    assert len(message) <= LONGEST_ERROR, f"its message has {len(message)} characters"
    assert all(line.isprintable() for line in message.splitlines()), "its message holds control characters"


def _check_listing(found: Listing) -> None:
    ids = [record.image_id for record in found.records]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    for record in found.records:
        assert record.patient_id
        assert record.image_uri
        assert record.mask_uris
        assert record.split in (*SPLITS, None)
        assert all(isinstance(value, str) and value for value in record.groups.values())
    for item in found.set_aside:
        assert item.reason in REASONS
        _check_message(item.detail)
