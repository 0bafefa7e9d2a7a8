"""The index of a folder of shards: what each of them holds, and what they were built from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lungseg_ray.config import CorpusSettings, FileName
from lungseg_ray.corpus.record import SPLITS, Split
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location

SCHEMA_VERSION = 3
"""The version of the rows of a shard and of the index."""
INDEX = "index.json"
SUM = "sha256"
"""The key of the SHA-256 of the rest of a JSON object."""
MOST_ROWS = 100_000
"""The maximum number of images in a shard."""


class Shard(BaseModel):
    """The entry of one shard in the index.

    Attributes:
        file: The name of the file within the folder of the shards.
        split: The split of all rows of the shard.
        rows: The number of rows in the file.
        footer: The SHA-256 of the file's footer, hexadecimal. The footer names the sum of all rows, and the pages of
            the rows have checksums of their own, so that damage and mistakes are found without reading all of a shard.
            Someone who makes other pages of the same sizes on purpose is not found.
        skip: The numbers of the rows that are not used, because another image of the corpus has the same bytes.
    """

    model_config = ConfigDict(frozen=True)
    file: FileName
    split: Split
    rows: Annotated[int, Field(ge=0, le=MOST_ROWS)]
    footer: str
    skip: tuple[int, ...] = ()

    @property
    def usable(self) -> list[int]:
        """The numbers of the rows that are used, in ascending order."""
        return [row for row in range(self.rows) if row not in self.skip]


class SplitFigures(BaseModel):
    """The figures of one split.

    Attributes:
        images: The number of images that are used.
        patients: The number of patients.
        label_shares: The share of pixels with each label, 0 to 1, by label; pixels with `IGNORE_LABEL` do not count.
        intensity_mean: The mean pixel value over all pixels, scaled to 0 to 1.
        intensity_std: The standard deviation of the pixel value over all pixels, on the same scale.
    """

    images: int
    patients: int
    label_shares: dict[int, float]
    intensity_mean: float
    intensity_std: float


class ShardIndex(BaseModel):
    """The content of `index.json`: the shards in a folder, and what they were built from.

    Attributes:
        schema_version: The version of the schema of the rows.
        fingerprint: The SHA-256 of the content of the rows, hexadecimal; equal for equal images, masks and settings.
        source: The SHA-256 of the listing and of the settings that the shards were built from, hexadecimal.
        layout: The name of the layout of the corpus, or "phantom".
        corpus: The settings of the corpus.
        longer_side: The maximum length of the longer side of the stored images, pixels.
        splits: The figures of each split.
        shards: The shards.
        set_aside: The number of files that were set aside, by reason.
        files: The state of the corpus' files when the shards were built: for each root, their number and a hash.
        recognition: What was found out about the corpus when the shards were built, for the user.
        warnings: What the user should check, as sentences.
    """

    schema_version: int
    fingerprint: str
    source: str
    layout: str
    corpus: CorpusSettings
    longer_side: int
    splits: dict[Split, SplitFigures]
    shards: list[Shard]
    set_aside: dict[str, int]
    files: list[tuple[int, str]] = []
    recognition: list[str] = []
    warnings: list[str] = []

    @field_validator("splits")
    @classmethod
    def _all_splits(cls, splits: dict[Split, SplitFigures]) -> dict[Split, SplitFigures]:
        if missing := {*SPLITS} - {*splits}:
            raise ValueError(f"the figures of {', '.join(sorted(missing))} are missing")
        return splits

    def of(self, split: Split) -> list[Shard]:
        """Returns the shards of a split."""
        return [shard for shard in self.shards if shard.split == split]

    def count(self, split: Split) -> int:
        """Returns the number of images of a split that are used."""
        return self.splits[split].images


def read_index(root: Location) -> ShardIndex:
    """Reads the index of a folder of shards.

    Args:
        root: The folder of the shards.

    Returns:
        The index.

    Raises:
        UserError: If there is no index, if it is damaged, or if it has another version of the schema.
        OSError: If a disk, or a bucket (`StorageError`), does not answer.
    """
    try:
        data = (root / INDEX).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{root}: no {INDEX} there, so these are no finished shards. "
            f"Make them with: python jobs/shard.py --corpus.root DIR --shards.root {root}"
        ) from None
    try:
        content = json.loads(data.decode())
        version = content["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{root / INDEX}: cannot be read. Delete it, and make the shards again.") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{root / INDEX}: expected schema version {SCHEMA_VERSION}, found {version}. Make the shards again."
        )
    if content.pop(SUM, None) != json_sum(content):
        raise UserError(
            f"{root / INDEX}: expected what was written there, found something else (its checksum differs). Delete it, "
            "and make the shards again: only the index is made."
        )
    try:
        return ShardIndex.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{root / INDEX}: does not hold what it should: {error}. Make the shards again.") from None


def write_index(root: Location, index: ShardIndex) -> None:
    """Writes the index of a folder of shards, with the sum of its content.

    Args:
        root: The folder of the shards.
        index: The index.

    Raises:
        OSError: If the file cannot be written; a `StorageError` for a bucket.
    """
    content = json.loads(index.model_dump_json())
    (root / INDEX).write_text(json.dumps({**content, SUM: json_sum(content)}, indent=2) + "\n")


def json_sum(content: Mapping[str, Any] | list[dict[str, Any]]) -> str:
    """Returns the SHA-256 of what JSON can hold, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
