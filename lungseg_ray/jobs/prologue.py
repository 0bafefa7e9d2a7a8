"""The steps that a training run and a sweep have in common before they train: lease, cluster and shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

from lungseg_ray.cluster.capacity import Planned, plan_on_cluster
from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.planning import TrainingPlan, plan_training
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import Settings
from lungseg_ray.run.event_log import EventLog
from lungseg_ray.run.lease import Lease, acquire
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.shards.reuse import build_missing_shards, changed_corpus, find_shards, with_shard_settings
from lungseg_ray.storage import Location

AnySettings = TypeVar("AnySettings", bound=Settings)


def known_shards(settings: AnySettings, folder: Location, console: Console) -> tuple[AnySettings, ShardIndex | None]:
    """Looks for the shards of a job before a cluster is started.

    Args:
        settings: The settings of the job.
        folder: The folder that the job writes.
        console: The console that the user reads.

    Returns:
        The settings, with those of the corpus and the shards replaced by the settings that the shards were built with,
        and with the fingerprints of the corpora that are mixed in; and the index of the shards. If there are no shards
        yet, the index is None.

    Raises:
        UserError: If the folder would be lost with the job, if the shards were built with other settings than the user
            asks for, or if their index is damaged, or that of a corpus that is mixed in.
    """
    check_lasting(folder)
    corpora = [one.model_copy(update={"fingerprint": read_index(one.root).fingerprint}) for one in settings.corpora]
    settings = settings.model_copy(update={"corpora": corpora})
    index = find_shards(settings.shards.root, settings)
    return (with_shard_settings(settings, index) if index else settings), index


@contextmanager
def held(folder: Location, console: Console, *, processes: int) -> Iterator[Lease]:
    """Holds the lease of a folder and a connection to a Ray cluster for the duration of the block.

    Args:
        folder: The folder that the job writes.
        console: The console that the user reads.
        processes: The number of processes that need a CPU each, in addition to those of the data.

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
        The settings, with those of the corpus and the shards replaced by the settings that the shards were built with;
        and the index of the shards.

    Raises:
        UserError: If a node does not see the folder, or if the shards cannot be built.
        OSError: If a file cannot be read or written.
    """
    check_shared(folder)
    if index is None:
        index = build_missing_shards(settings, console)
    elif changed := changed_corpus(settings, index):
        console.print(f"Warning: {changed}", highlight=False)
    return with_shard_settings(settings, index), index


def planned_workers(settings: Settings) -> Planned[TrainingPlan]:
    """Plans the workers of a run for what the cluster has or can have.

    Args:
        settings: The settings of the run.

    Raises:
        UserError: If they do not fit.
    """
    train = settings.train
    return plan_on_cluster(
        lambda has: plan_training(
            cpus=has.cpus,
            gpus=has.gpus,
            workers=train.workers,
            min_workers=train.min_workers,
            device=train.device,
            tasks=settings.feed.tasks,
        ),
        lambda plan: plan.needs(train.min_workers or train.workers, settings.feed.tasks),
    )
