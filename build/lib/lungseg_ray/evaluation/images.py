"""Images with masks, read from shards or straight from a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import Record, read_sample
from lungseg_ray.shards.format import Shard, ShardRow, read_rows
from lungseg_ray.storage import Location


class Images(Protocol):
    """Images with masks, by number."""

    def __len__(self) -> int:
        """How many."""

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""

    def read(self, number: int) -> ShardRow:
        """One of them.

        Raises:
            BadFileError: if it cannot be used.
        """


@dataclass(frozen=True)
class ShardImages:
    """The rows of some shards."""

    root: Location
    rows: list[tuple[str, int]]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""
        file, row = self.rows[number]
        return f"{file}:{row}", str(self.root / file)

    def read(self, number: int) -> ShardRow:
        """One of them."""
        file, row = self.rows[number]
        return read_rows(self.root / file, [row])[0]

    @classmethod
    def of(cls, root: Location, shards: Iterable[Shard]) -> ShardImages:
        """All rows of these files that count."""
        return cls(root, [(shard.file, row) for shard in shards for row in shard.usable])


@dataclass(frozen=True)
class CorpusImages:
    """The records of a corpus, read as sharding reads them."""

    records: list[Record]
    corpus: CorpusSettings
    longer_side: int

    def __len__(self) -> int:
        """How many."""
        return len(self.records)

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""
        return self.records[number].image_id, self.records[number].shown

    def read(self, number: int) -> ShardRow:
        """One of them."""
        record = self.records[number]
        sample = read_sample(record, self.corpus, longer_side=self.longer_side)
        return ShardRow(record.image_id, record.patient_id, dict(record.groups), sample)
