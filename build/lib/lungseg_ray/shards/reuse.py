"""Whether the shards that exist fit a job, and how missing ones are built."""

from __future__ import annotations

from typing import TypeVar

from rich.console import Console

from lungseg_ray.config import Mark, Settings, differences, explicitly_set, marked, merge, select
from lungseg_ray.errors import UserError
from lungseg_ray.shards.build import describe_outcome, shard
from lungseg_ray.shards.format import INDEX, ShardIndex, read_index
from lungseg_ray.storage import Location

AnySettings = TypeVar("AnySettings", bound=Settings)


def find_shards(root: Location, settings: Settings) -> ShardIndex | None:
    """Returns the index of the shards in a folder; None if they must be built.

    Args:
        root: The folder of the shards.
        settings: The settings of the job. Only what the user set is compared with the shards.

    Raises:
        UserError: If the shards were built with other settings than the user asks for, or if the index is damaged.
    """
    if not (root / INDEX).exists():
        return None
    index = read_index(root)
    built = {"corpus": index.corpus.model_dump(), "shards": {"longer_side": index.longer_side}}
    asked = select(explicitly_set(settings), {"corpus", "shards.longer_side"})
    changed = list(differences(built, merge(built, asked), ignore=set(marked(Settings, Mark.DESCRIPTION))))
    if changed:
        raise UserError(
            f"{root}: these shards were made otherwise than asked for:\n  " + "\n  ".join(changed) + "\n"
            "Make others with jobs/shard.py and another --shards.root, or leave these settings out."
        )
    return index


def build_missing_shards(settings: Settings, console: Console) -> ShardIndex:
    """Builds the shards that a job finds missing, and tells the user. Needs a running Ray cluster.

    Args:
        settings: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `shard`.
        OSError: As `shard`.
    """
    console.print(f"No shards in {settings.shards.root} yet: making them from {settings.corpus.root}", highlight=False)
    outcome = shard(settings)
    console.print(describe_outcome(outcome), highlight=False)
    return outcome.index


def with_shard_settings(settings: AnySettings, index: ShardIndex) -> AnySettings:
    """Returns the settings of a job with those that its shards were built with in their place.

    Args:
        settings: The settings of the job; its descriptions of the data are kept where it has some.
        index: The index of the shards.
    """
    described = select(settings.model_dump(), set(marked(Settings, Mark.DESCRIPTION)))["corpus"]
    given = {key: text for key, text in described.items() if text}
    return settings.model_copy(
        update={
            "corpus": index.corpus.model_copy(update=given),
            "shards": settings.shards.model_copy(update={"longer_side": index.longer_side}),
        }
    )
