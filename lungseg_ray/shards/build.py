"""The job that turns a corpus into shards: list, split by patient, decode in parallel, write, index."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, TypedDict

import pyarrow as pa
import ray

from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.config import CorpusSettings, Mark, Settings, marked, select
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.read import Sample, read_sample
from lungseg_ray.corpus.record import REASONS, SPLITS, Record, SetAside, Split
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.shards.format import (
    INDEX,
    SCHEMA_VERSION,
    Shard,
    ShardIndex,
    Side,
    read_facts,
    read_index,
    read_notes,
    write_file,
)
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry

SET_ASIDE = "set_aside.csv"

_SHARD_NAME = re.compile(rf"\.?({'|'.join(SPLITS)})-\d{{5}}-[0-9a-f]{{8}}\.parquet(\..*\.part)?")
"""Files that are ours to delete: shards of another corpus or other settings, and what a killed writer left."""


@dataclass(frozen=True)
class Outcome:
    """What sharding led to.

    Attributes:
        root: the folder of shards.
        index: what it holds.
        set_aside: the files that are not used.
        listing: what the corpus held when it was listed.
        fresh: False if the shards were there already.
    """

    root: Location
    index: ShardIndex
    set_aside: list[SetAside]
    listing: Listing
    fresh: bool


@dataclass(frozen=True)
class _Writer:
    """Decodes the records of one shard and writes it; runs in a data task."""

    root: Location
    corpus: CorpusSettings
    longer_side: int

    def __call__(self, batch: pa.Table) -> pa.Table:
        file = batch.column("file")[0].as_py()
        target = self.root / file
        if not target.exists():
            rows: list[tuple[Record, Sample]] = []
            bad: list[SetAside] = []
            try:
                for text in batch.column("record").to_pylist():
                    record = Record.from_json(text)
                    try:
                        rows.append((record, retry(partial(self._read, record), seconds=PATIENCE_SECONDS)))
                    except BadFileError as error:
                        bad.append(SetAside(record.image_id, record.shown, error.reason, error.detail))
                retry(lambda: write_file(target, rows, bad), seconds=PATIENCE_SECONDS)
            except OSError as error:
                # An exception loses its kind on the way through Ray; the driver raises it again.
                return pa.table({"trouble": [f"{target} cannot be made: {error}"]})
        return pa.table({"trouble": [""]})

    def _read(self, record: Record) -> Sample:
        return read_sample(record, self.corpus, longer_side=self.longer_side)


def shard(settings: Settings) -> Outcome:
    """Makes the shards of a corpus, or finds that they are up to date. Needs a running Ray cluster.

    A shard is written whole or not at all, and the index last: a job that was killed leaves nothing half-written, and
    the same command goes on with the shards that are missing.

    Raises:
        UserError: if the corpus cannot be listed, if a patient stands on two sides of the split, or if a larger share
            of the files cannot be used than `shards.max_set_aside`.
        OSError: if a shard cannot be written.
    """
    root = settings.shards.root
    check_lasting(root)
    check_shared(root)
    listing = list_corpus(settings.corpus)
    content = select(settings.model_dump(mode="json"), set(marked(Settings, Mark.IN_SHARDS)))
    source = _fingerprint(
        [asdict(record) for record in listing.records],
        [asdict(one) for one in listing.set_aside],
        content["corpus"],
        content["shards"],
        SCHEMA_VERSION,
    )
    current = _current(root, source)
    if current:
        words = settings.corpus.model_dump(include={"about", "licence"})
        current = current.model_copy(update={"corpus": current.corpus.model_copy(update=words)})
        (root / INDEX).write_text(current.model_dump_json(indent=2))
        return Outcome(root, current, read_set_aside(root), listing, fresh=False)
    records = assign_splits(listing.records, settings.corpus.split)
    plan = list(_deal(records, settings.shards.rows, source))
    _write_all(root, plan, settings)
    index, set_aside = _build_index(root, [file for file, _ in plan], settings, source, listing.layout)
    set_aside = sorted([*listing.set_aside, *set_aside], key=lambda one: (one.reason, one.image_id))
    index = index.model_copy(update={"set_aside": dict(Counter(one.reason for one in set_aside))})
    _refuse_too_many(set_aside, len(listing.records) + len(listing.set_aside), settings)
    if not index.count("train"):
        bare = f" {len(listing.unlabelled)} images have no mask." if listing.unlabelled else ""
        raise UserError(
            f"{settings.corpus.root}: no usable image is left for training.{bare}\n{set_aside_table(set_aside)}"
        )
    (root / SET_ASIDE).write_csv(map(asdict, set_aside), [field.name for field in fields(SetAside)])
    (root / INDEX).write_text(index.model_dump_json(indent=2))
    keep = {shard.file for shard in index.shards}
    for place, _ in root.list():
        if _SHARD_NAME.fullmatch(place.name) and place.name not in keep:
            place.delete()
    return Outcome(root, index, set_aside, listing, fresh=True)


def read_set_aside(root: Location) -> list[SetAside]:
    """The files that were set aside when the shards were made."""
    return [SetAside(**row) for row in csv.DictReader(io.StringIO((root / SET_ASIDE).read_text()))]


def describe_outcome(outcome: Outcome) -> str:
    """What lies in a folder of shards, for a person."""
    index, listing = outcome.index, outcome.listing
    lines = [f"{outcome.root}: {'written' if outcome.fresh else 'up to date'}, layout {listing.recognised}"]
    for split, side in index.sides.items():
        shares = ", ".join(f"{label}: {share:.1%}" for label, share in side.label_shares.items())
        lines.append(
            f"  {split:5s}  {side.images:6d} images of {side.patients} patients; pixels by label {shares or '-'}; "
            f"intensity {side.intensity_mean:.3f} +- {side.intensity_std:.3f}"
        )
    if listing.unlabelled:
        lines.append(f"  {len(listing.unlabelled)} images are unlabelled: the layout knows of no mask for them")
    if listing.ignored:
        lines.append(f"  {listing.ignored} other files among images and masks were not read")
    if outcome.set_aside:
        lines += [f"Set aside, in {outcome.root / SET_ASIDE}:", set_aside_table(outcome.set_aside)]
    return "\n".join(lines)


def set_aside_table(set_aside: list[SetAside], most: int = 10) -> str:
    """Files set aside, as text: the count of each reason, then the first files."""
    counts = Counter(one.reason for one in set_aside)
    lines = [f"  {count:6d}  {reason}: {REASONS.get(reason, '')}" for reason, count in counts.most_common()]
    lines += [f"  {one.uri}: {one.reason}: {one.detail}" for one in set_aside[:most]]
    if len(set_aside) > most:
        lines.append(f"  ... and {len(set_aside) - most} more")
    return "\n".join(lines)


def _current(root: Location, source: str) -> ShardIndex | None:
    """The index that is there, if it was made from this source and its files are there, too."""
    if not (root / INDEX).exists():
        return None
    try:
        index = read_index(root)
    except UserError:
        # Whatever it is, it is about to be replaced.
        return None
    there = {place.name for place, _ in root.list()}
    return index if index.source == source and {shard.file for shard in index.shards} <= there else None


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _deal(records: list[Record], rows: int, source: str) -> Iterable[tuple[str, list[Record]]]:
    for split in SPLITS:
        side = [record for record in records if record.split == split]
        for number, start in enumerate(range(0, len(side), rows)):
            yield f"{split}-{number:05d}-{source[:8]}.parquet", side[start : start + rows]


def _write_all(root: Location, plan: list[tuple[str, list[Record]]], settings: Settings) -> None:
    root.make_dir()
    tasks = [
        pa.table({"file": [file] * len(records), "record": [json.dumps(asdict(record)) for record in records]})
        for file, records in plan
    ]
    writer = _Writer(root, settings.corpus, settings.shards.longer_side)
    done = ray.data.from_arrow(tasks).map_batches(writer, batch_size=None, batch_format="pyarrow")
    for row in ticks(done.iter_rows(), total=len(plan), description="Writing shards"):
        if row["trouble"]:
            raise OSError(f"{row['trouble']}. Nothing half-written was left; the same command goes on.")


def _build_index(
    root: Location, files: list[str], settings: Settings, source: str, layout: str
) -> tuple[ShardIndex, list[SetAside]]:
    seen: dict[str, str] = {}
    set_aside: list[SetAside] = []
    shards: list[Shard] = []
    content: list[tuple[str, ...]] = []
    tallies: dict[Split, _Tally] = {split: _Tally() for split in SPLITS}
    for file in files:
        place = root / file
        split: Split = next(split for split in SPLITS if file.startswith(f"{split}-"))
        set_aside += read_notes(place)
        facts = read_facts(place).to_pylist(maps_as_pydicts="strict")
        skip = []
        for number, row in enumerate(facts):
            same = seen.setdefault(row["image_sha256"], row["image_id"])
            if same != row["image_id"]:
                skip.append(number)
                set_aside.append(SetAside(row["image_id"], row["image_id"], "duplicate", f"same bytes as {same}"))
            else:
                tallies[split].add(row)
                content.append((split, row["image_id"], row["patient_id"], row["image_sha256"], row["mask_sha256"]))
        shards.append(Shard(file=file, split=split, rows=len(facts), skip=tuple(skip)))
    corpus = settings.corpus
    index = ShardIndex(
        schema_version=SCHEMA_VERSION,
        fingerprint=_fingerprint(
            content,
            [shard.model_dump(exclude={"file"}) for shard in shards],
            corpus.model_dump(mode="json", include={"channels", "classes", "mask_values"}),
            settings.shards.longer_side,
            SCHEMA_VERSION,
        ),
        source=source,
        layout=layout,
        corpus=corpus,
        longer_side=settings.shards.longer_side,
        sides={split: tally.side() for split, tally in tallies.items()},
        shards=shards,
        set_aside={},
    )
    return index, set_aside


class _RowFacts(TypedDict):
    """The columns of a row that are added up."""

    height: int
    width: int
    patient_id: str
    label_pixels: dict[int, int]
    intensity_mean: float
    intensity_square: float


class _Tally:
    """Adds up the figures of one side of the split."""

    def __init__(self) -> None:
        self.images = 0
        self.patients: set[str] = set()
        self.labels: Counter[int] = Counter()
        self.pixels = 0
        self.mean = 0.0
        self.square = 0.0

    def add(self, row: _RowFacts) -> None:
        pixels = row["height"] * row["width"]
        self.images += 1
        self.patients.add(row["patient_id"])
        self.labels.update(row["label_pixels"])
        self.pixels += pixels
        self.mean += row["intensity_mean"] * pixels
        self.square += row["intensity_square"] * pixels

    def side(self) -> Side:
        pixels, valid = max(self.pixels, 1), max(sum(self.labels.values()), 1)
        mean = self.mean / pixels
        return Side(
            images=self.images,
            patients=len(self.patients),
            label_shares={label: count / valid for label, count in sorted(self.labels.items())},
            intensity_mean=mean,
            intensity_std=math.sqrt(max(self.square / pixels - mean**2, 0.0)),
        )


def _refuse_too_many(set_aside: list[SetAside], total: int, settings: Settings) -> None:
    share = len(set_aside) / max(total, 1)
    if share > settings.shards.max_set_aside:
        raise UserError(
            f"{settings.corpus.root}: {len(set_aside)} of {total} files ({share:.1%}) cannot be used; at most "
            f"{settings.shards.max_set_aside:.1%} may be (shards.max_set_aside). Mend them or raise the limit.\n"
            f"{set_aside_table(set_aside)}"
        )
