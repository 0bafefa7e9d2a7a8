"""Images with masks for an evaluation, read from shards or directly from the files of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import Record
from lungseg_ray.shards.format import ShardRow, read_rows
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import Location


class Images(Protocol):
    """A numbered set of images with masks."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def name(self, number: int) -> tuple[str, str]:
        """Returns an id and the location of an image, both for messages.

        Args:
            number: The number of the image in the set, from 0.
        """

    def read(self, number: int) -> ShardRow:
        """Reads an image with its mask.

        Args:
            number: The number of the image in the set, from 0.

        Raises:
            BadFileError: If the image or its mask cannot be used.
            OSError: If a disk, or a bucket (`StorageError`), does not answer.
        """


@dataclass(frozen=True)
class ShardImages:
    """Images that are rows of shards.

    Attributes:
        root: The folder of the shards.
        rows: The shard and the number of the row in it, for each image.
    """

    root: Location
    rows: list[tuple[Shard, int]]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.rows)

    def name(self, number: int) -> tuple[str, str]:
        """Returns the file and the number of the row as `FILE:ROW`, and the location of the file."""
        shard, row = self.rows[number]
        return f"{shard.file}:{row}", str(self.root / shard.file)

    def read(self, number: int) -> ShardRow:
        """Reads an image with its mask."""
        shard, row = self.rows[number]
        return read_rows(self.root, shard, [row])[0]

    @classmethod
    def of(cls, root: Location, shards: Iterable[Shard]) -> ShardImages:
        """Returns all usable rows of some shards.

        Args:
            root: The folder of the shards.
            shards: The shards.
        """
        return cls(root, [(shard, row) for shard in shards for row in shard.usable])


@dataclass(frozen=True)
class CorpusImages:
    """Images that are records of a corpus, decoded in the same way as for shards.

    Attributes:
        records: The record of each image.
        corpus: The settings of the corpus.
        longer_side: The maximum length of the longer side, pixels. Larger images are reduced to it.
    """

    records: list[Record]
    corpus: CorpusSettings
    longer_side: int

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.records)

    def name(self, number: int) -> tuple[str, str]:
        """Returns the id of the image, and the location of its file; the id for both if the record is private."""
        return self.records[number].image_id, self.records[number].shown

    def read(self, number: int) -> ShardRow:
        """Reads an image with its mask."""
        record = self.records[number]
        sample = read_sample(record, self.corpus, longer_side=self.longer_side)
        return ShardRow(record.image_id, record.patient_id, dict(record.groups), sample)
