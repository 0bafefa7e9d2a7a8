"""Finds files that were exchanged for others of the same size and time of change, by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lungseg_ray.corpus.read import fetch
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import BadFileError
from lungseg_ray.shards.format import read_contents
from lungseg_ray.shards.index import INDEX, ShardIndex
from lungseg_ray.storage import REQUESTS, Location


def exchanged(records: Sequence[Record], root: Location, index: ShardIndex) -> list[str]:
    """Finds the images whose files hold something else than when the shards were built.

    A program can give a file any time of change (`cp -p`, `touch`), but on a local disk the system notes when it was
    last written to or replaced. Only files with a later note than the index are read. In a bucket, the time of change
    says it all.

    Args:
        records: The images of the corpus.
        root: The folder of the shards, on a local disk.
        index: The index of the shards.

    Returns:
        The ids of the images, in the order of the records.
    """
    made = (root / INDEX).info().mtime_ns
    if not root.is_local or made is None:
        return []
    later = [record for record in records if _noted_after(made, (record.image_uri, *record.mask_uris))]
    if not later:
        return []
    rows = [row for shard in index.shards for row in read_contents(root / shard.file).rows]
    known = {row["image_id"]: (row["image_sha256"], row["mask_sha256"]) for row in rows}
    with ThreadPoolExecutor(REQUESTS) as pool:
        same = list(pool.map(lambda record: _is_same(record, known), later))
    return [record.image_id for record, is_same in zip(later, same, strict=True) if not is_same]


def _noted_after(made: int, uris: Iterable[str]) -> bool:
    for place in map(Location, uris):
        with suppress(OSError, ValueError):
            if place.is_local and Path(place.path).stat().st_ctime_ns > made:
                return True
    return False


def _is_same(record: Record, known: Mapping[str, tuple[str, str]]) -> bool:
    """Whether the files of an image have the known content; what is not known, or no file, is taken for unchanged."""
    if record.image_id not in known or any(source.entry for source in record.masks):
        return True
    try:
        image, mask = hashlib.sha256(fetch(record.image_uri)), hashlib.sha256()
        for uri in record.mask_uris:
            mask.update(fetch(uri))
    except BadFileError:
        return False
    return (image.hexdigest(), mask.hexdigest()) == known[record.image_id]
