"""The job that builds the shards of a corpus.

It lists the corpus, assigns the patients to splits, decodes and writes the images in parallel, and writes the index.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import ray

from lungseg_ray.cluster.capacity import wait_for_cpu
from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.watchdog import end_if_stalled
from lungseg_ray.config import CorpusSettings, Mark, Settings, marked, select
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.pairs_picture import PAIRS_PICTURE, draw_pairs
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import SPLITS, Record, Sample, SetAside
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.progress import ticks
from lungseg_ray.run.lease import acquire
from lungseg_ray.shards.checks import check
from lungseg_ray.shards.describe import REFUSED, SET_ASIDE, Outcome, set_aside_table, what_was_found
from lungseg_ray.shards.format import Contents, DamagedShardError, read_contents, write_file
from lungseg_ray.shards.index import INDEX, SCHEMA_VERSION, ShardIndex, read_index, write_index
from lungseg_ray.shards.index_builder import IndexBuilder, JsonDigest
from lungseg_ray.shards.stale import exchanged
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry
from lungseg_ray.text import named

_DRAWN = 6
"""The number of pairs in the picture beside the shards."""

_PLANNED = 256
"""The number of shards whose plan a task gets at once."""
_SHARD_NAME = re.compile(rf"\.?({'|'.join(SPLITS)})-\d{{5,}}-[0-9a-f]{{8}}\.parquet(\..*\.part)?")
"""The names of the files that the job may delete: shards of another corpus or of other settings, and the partial files
of a writer that was killed."""


@dataclass(frozen=True)
class _Writer:
    """Decodes the records of one shard and writes it; runs in a data task.

    Attributes:
        root: The folder of the shards.
        corpus: The settings of the corpus.
        longer_side: The maximum length of the longer side, pixels.
        parts: References to the plan: the file and the records of `_PLANNED` shards each.
    """

    root: Location
    corpus: CorpusSettings
    longer_side: int
    parts: list[ray.ObjectRef]

    def __call__(self, batch: pa.Table) -> pa.Table:
        number = batch.column("id")[0].as_py()
        file, records = _planned(self.parts[number // _PLANNED])[number % _PLANNED]
        target = self.root / file
        outcome = {"file": file, "contents": "", "damage": "", "trouble": ""}
        # Ray does not preserve the type of an exception, so the driver gets the message and raises it again.
        try:
            there = retry(target.exists, seconds=PATIENCE_SECONDS)
            outcome["contents"] = (self._read(target) if there else self._write(target, records)).to_json()
        except DamagedShardError as error:
            outcome["damage"] = str(error)
        except OSError as error:
            outcome["trouble"] = str(error)
        return pa.Table.from_pylist([outcome])

    def _read(self, target: Location) -> Contents:
        return retry(lambda: read_contents(target), seconds=PATIENCE_SECONDS)

    def _write(self, target: Location, records: Sequence[str]) -> Contents:
        rows: list[tuple[Record, Sample]] = []
        bad: list[SetAside] = []
        checks: list[dict[str, Any]] = []
        for record in map(Record.from_json, records):
            try:
                sample = retry(partial(self._decode, record), seconds=PATIENCE_SECONDS)
                rows.append((record, sample))
                checks.append(asdict(check(record, sample)))
            except BadFileError as error:
                bad.append(SetAside(record.image_id, record.shown, error.reason, error.detail))
        return retry(lambda: write_file(target, rows, bad, checks), seconds=PATIENCE_SECONDS)

    def _decode(self, record: Record) -> Sample:
        return read_sample(record, self.corpus, longer_side=self.longer_side)


@lru_cache(maxsize=2)
def _planned(part: ray.ObjectRef) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = ray.get(part)
    return found


def shard(settings: Settings, note: Callable[[str], None] = lambda text: None) -> Outcome:
    """Builds the shards of a corpus unless they are up to date. Needs a running Ray cluster.

    Each shard is written atomically, and the index is written last. A job that was killed therefore leaves no partial
    shard, and the same command resumes with the shards that are missing.

    Shards of other files or settings in the folder may be those that a training reads. They are replaced only if
    `shards.replace` says so.

    Args:
        settings: The settings of the job.
        note: Called with a message about another job that has held the folder.

    Returns:
        The index of the shards, and the files that are not used.

    Raises:
        UserError: If the corpus cannot be listed, if the patients cannot be assigned to splits, for example because the
            corpus prescribes two splits for a patient, if the share of files that cannot be used is above
            `shards.max_set_aside`, if no usable image is left for training, if the folder of the shards does not
            outlive the job or is not seen by every node, if another job builds shards there, or if it holds others.
        OSError: If the corpus cannot be read or a shard cannot be written.
    """
    root = settings.shards.root
    check_lasting(root)
    check_shared(root)
    with acquire(root, note):
        return _shard(settings)


def _shard(settings: Settings) -> Outcome:
    root = settings.shards.root
    listing = list_corpus(settings.corpus, settings.outputs)
    source = source_of(listing, settings)
    current = _current(root, source)
    if current:
        index, set_aside = current
        if others := exchanged(listing.records, root, index):
            if not settings.shards.replace:
                raise UserError(
                    f"{root}: other shards are there, which a training may read: the files of {named(others)} were "
                    "exchanged for others of the same size and time. Use another --shards.root, or replace them: "
                    "--shards.replace true"
                )
            for place in (root / INDEX, *(root / shard.file for shard in index.shards)):
                place.delete()
            current = None
    if current:
        words = settings.corpus.model_dump(include={"about", "licence"})
        corpus = index.corpus.model_copy(update=words)
        index = index.model_copy(update={"corpus": corpus, "files": list(listing.files)})
        write_index(root, index)
        return Outcome(root, index, set_aside, listing, fresh=False)
    if not settings.shards.replace:
        _refuse_others(root, source, settings, sum(state.files for state in listing.files))
    settings = settings.model_copy(update={"corpus": listing.corpus})
    records = assign_splits(listing.records, settings.corpus.split)
    builder = IndexBuilder(settings, source=source, layout=listing.layout)
    _write_all(root, records, settings, builder, source)
    index, set_aside = builder.finish()
    set_aside = sorted([*listing.set_aside, *set_aside], key=lambda one: (one.reason, one.image_id))
    counts = dict(Counter(one.reason for one in set_aside))
    words = what_was_found(listing, settings.corpus)
    words["warnings"] += index.warnings
    index = index.model_copy(update={"set_aside": counts, "files": list(listing.files), **words})
    _refuse_too_many(set_aside, len(listing.records) + len(listing.set_aside), settings)
    if not index.count("train"):
        bare = f" {len(listing.unlabelled)} images have no mask." if listing.unlabelled else ""
        raise UserError(
            f"{settings.corpus.root}: no usable image is left for training.{bare}\n{_listed(set_aside, root)}"
        )
    _write_table(root / SET_ASIDE, set_aside)
    (root / REFUSED).delete()
    write_index(root, index)
    if picture := draw_pairs(listing.records, settings.corpus, most=_DRAWN):
        (root / PAIRS_PICTURE).write_bytes(picture)
    keep = {shard.file for shard in index.shards}
    for place, _ in root.list():
        if _SHARD_NAME.fullmatch(place.name) and place.name not in keep:
            place.delete()
    return Outcome(root, index, set_aside, listing, fresh=True)


def _refuse_others(root: Location, source: str, settings: Settings, files: int) -> None:
    """Raises a `UserError` if the folder holds finished shards of other files or settings."""
    try:
        index = read_index(root)
    except UserError:
        return
    if index.source == source:
        return
    now = settings.shards.longer_side
    if index.longer_side != now:
        why = f"they have a longer side of {index.longer_side} px, and {now} px were asked for"
    elif str(index.corpus.root) != str(settings.corpus.root):
        why = f"they are of the corpus {index.corpus.root}"
    elif sum(count for count, _ in index.files) != files:
        why = f"the corpus had {sum(count for count, _ in index.files)} files, and has {files}"
    else:
        why = "the files of the corpus, or settings of it, have changed since"
    raise UserError(
        f"{root}: other shards are there, which a training may read: {why}. Use another --shards.root, or replace "
        "them: --shards.replace true"
    )


def read_set_aside(root: Location) -> list[SetAside]:
    """Reads the files that were set aside when the shards were built.

    Args:
        root: The folder of the shards.

    Returns:
        The files, in the order of `set_aside.csv`.

    Raises:
        UserError: If `set_aside.csv` does not exist or holds something else.
        OSError: If it cannot be read.
    """
    place = root / SET_ASIDE
    try:
        rows = csv.DictReader(io.StringIO(place.read_text()), strict=True)
        return [SetAside(**{field.name: row[field.name] for field in fields(SetAside)}) for row in rows]
    except (FileNotFoundError, ValueError, KeyError, csv.Error):
        raise UserError(
            f"{place}: expected the files that were set aside, found nothing or something else. Run jobs/shard.py with "
            "the same settings to have it made again."
        ) from None


def _current(root: Location, source: str) -> tuple[ShardIndex, list[SetAside]] | None:
    """Returns the index of shards that were built from this source and are whole, and what was set aside."""
    if not (root / INDEX).exists():
        return None
    try:
        index, set_aside = read_index(root), read_set_aside(root)
    except UserError:
        # What cannot be used counts as missing, because the job replaces it.
        return None
    there = {place.name for place, _ in root.list()}
    return (index, set_aside) if index.source == source and {shard.file for shard in index.shards} <= there else None


def source_of(listing: Listing, settings: Settings) -> str:
    """Returns the SHA-256 of what shards are built from, as in `ShardIndex`, hexadecimal.

    Args:
        listing: The listing of the corpus.
        settings: The settings of the job.
    """
    content = select(settings.model_dump(mode="json"), set(marked(Settings, Mark.IN_SHARDS)))
    digest = JsonDigest()
    digest.add_all(record.to_json(sort_keys=True) for record in listing.records)
    for part in ([asdict(one) for one in listing.set_aside], content["corpus"], content["shards"], SCHEMA_VERSION):
        digest.add(part)
    return digest.hexdigest()


def deal(records: Sequence[Record], rows: int, source: str) -> Iterator[tuple[str, list[Record]]]:
    """Deals the records of each split to shards.

    Args:
        records: The records, each with its split.
        rows: The number of images of a shard.
        source: The SHA-256 of what the shards are built from.

    Yields:
        The name of each file, and its records.
    """
    for split in SPLITS:
        chosen = [record for record in records if record.split == split]
        for number, start in enumerate(range(0, len(chosen), rows)):
            yield f"{split}-{number:05d}-{source[:8]}.parquet", chosen[start : start + rows]


def _write_all(root: Location, records: Sequence[Record], settings: Settings, index: IndexBuilder, source: str) -> None:
    """Writes the shards of records, and adds each to the index."""
    root.make_dir()
    plan = list(deal(records, settings.shards.rows, source))
    if not plan:
        return
    parts = [
        ray.put([(file, [record.to_json() for record in some]) for file, some in plan[start : start + _PLANNED]])
        for start in range(0, len(plan), _PLANNED)
    ]
    if wait_for_cpu():
        # There may be machines now that were not there before.
        check_shared(root)
    writer = _Writer(root, settings.corpus, settings.shards.longer_side, parts)
    done = ray.data.range(len(plan), override_num_blocks=len(plan)).map_batches(
        writer, batch_size=None, batch_format="pyarrow"
    )
    done.context.execution_options.preserve_order = True
    end_if_stalled(done)
    for row in ticks(done.iter_rows(), total=len(plan), description="Writing shards"):
        if row["damage"]:
            raise DamagedShardError(row["damage"])
        if row["trouble"]:
            raise OSError(
                f"{root / row['file']} cannot be made: {row['trouble']}. Nothing half-written was left; the same "
                "command resumes."
            )
        index.add(row["file"], Contents.from_json(row["contents"]))


def _refuse_too_many(set_aside: list[SetAside], total: int, settings: Settings) -> None:
    share = len(set_aside) / max(total, 1)
    if share > settings.shards.max_set_aside:
        raise UserError(
            f"{settings.corpus.root}: {len(set_aside)} of {total} files ({share:.1%}) cannot be used; at most "
            f"{settings.shards.max_set_aside:.1%} may be (shards.max_set_aside). Mend them or raise the limit.\n"
            f"{_listed(set_aside, settings.shards.root)}"
        )


def _listed(set_aside: list[SetAside], root: Location) -> str:
    """Returns the first files that cannot be used, for the user, and writes all of them into a table."""
    # Shards of an earlier corpus, which may still be there, keep their own table.
    _write_table(root / REFUSED, set_aside)
    return f"{set_aside_table(set_aside)}\nAll of them are listed in {root / REFUSED}"


def _write_table(place: Location, set_aside: list[SetAside]) -> None:
    place.write_csv(map(asdict, set_aside), [field.name for field in fields(SetAside)])
