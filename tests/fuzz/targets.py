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
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.picture import MOST_PIXELS
from lungseg_ray.corpus.record import REASONS, SPLITS
from lungseg_ray.errors import BadFileError, UserError
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


TARGETS = {
    "image": Target(image, seeds.images),
    "mask": Target(mask, seeds.images),
    "tags": Target(tags, seeds.dicoms),
    "manifest-csv": Target(manifest_csv, seeds.manifests),
    "manifest-parquet": Target(manifest_parquet, seeds.parquets),
    "index-csv": Target(index_csv, seeds.indexes),
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
