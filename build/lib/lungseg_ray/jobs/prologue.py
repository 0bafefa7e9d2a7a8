"""What a training run and a sweep do alike before they train: the lease, the cluster, and the shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import Settings
from lungseg_ray.run.event_log import EventLog
from lungseg_ray.run.lease import Lease, acquire
from lungseg_ray.shards.format import ShardIndex
from lungseg_ray.shards.reuse import build_missing_shards, find_shards, with_shard_settings
from lungseg_ray.storage import Location

AnySettings = TypeVar("AnySettings", bound=Settings)


def known_shards(settings: AnySettings, folder: Location) -> tuple[AnySettings, ShardIndex | None]:
    """Looks for the shards of a job before a cluster is started.

    Args:
        settings: The settings of the job.
        folder: The folder that the job writes.

    Returns:
        The settings with those that the shards were built with, and the index; None if there are no shards yet.

    Raises:
        UserError: If the folder would be lost with the job, or if the shards were built with other settings.
    """
    check_lasting(folder)
    index = find_shards(settings.shards.root, settings)
    return (with_shard_settings(settings, index) if index else settings), index


@contextmanager
def held(folder: Location, console: Console, *, processes: int) -> Iterator[Lease]:
    """Holds a folder and a Ray cluster for the time of the block.

    Args:
        folder: The folder that the job writes.
        console: The console that the user reads.
        processes: The number of processes that want a CPU each, beside those of the data.

    Yields:
        The lease of the folder.

    Raises:
        UserError: If another driver holds the folder, or if no cluster answers.
    """

    def note(text: str) -> None:
        console.print(text, highlight=False)

    with acquire(folder, note) as lease, cluster(processes=processes):
        if lease.taken_over_from:
            EventLog(folder, note).append("takeover", f"Taken over from {lease.taken_over_from}, which is dead.")
        yield lease


def usable_shards(
    settings: AnySettings, index: ShardIndex | None, folder: Location, console: Console
) -> tuple[AnySettings, ShardIndex]:
    """Makes sure that every node sees the folder of the job, and builds the shards that are missing.

    Args:
        settings: The settings of the job.
        index: The index of the shards; None if they must be built.
        folder: The folder that the job writes.
        console: The console that the user reads.

    Returns:
        The settings with those that the shards were built with, and the index.

    Raises:
        UserError: If a node does not see the folder, or if the shards cannot be built.
    """
    check_shared(folder)
    if index is None:
        index = build_missing_shards(settings, console)
    return with_shard_settings(settings, index), index
