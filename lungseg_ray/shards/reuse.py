"""Whether the shards that exist fit a job, and how missing ones are made."""

from __future__ import annotations

from typing import TypeVar

from rich.console import Console

from lungseg_ray.config import Settings, differences, merge, non_default
from lungseg_ray.errors import UserError
from lungseg_ray.shards.build import describe_outcome, shard
from lungseg_ray.shards.format import INDEX, ShardIndex, read_index
from lungseg_ray.storage import Location

AnySettings = TypeVar("AnySettings", bound=Settings)


_WORDS = ("about", "licence")
"""Settings of the corpus that are for people; the shards do not depend on them."""


def find_shards(root: Location, settings: Settings) -> ShardIndex | None:
    """The index of the shards that are there; None if they must be made.

    Raises:
        UserError: if they were made otherwise than the command asks for.
    """
    if not (root / INDEX).exists():
        return None
    index = read_index(root)
    made = {"corpus": index.corpus.model_dump(), "shards": {"longer_side": index.longer_side}}
    asked = {"corpus": non_default(settings.corpus), "shards": non_default(settings.shards)}
    asked["shards"] = {key: value for key, value in asked["shards"].items() if key == "longer_side"}
    for word in _WORDS:
        asked["corpus"].pop(word, None)
    other = list(differences(made, merge(made, asked)))
    if other:
        raise UserError(
            f"{root}: these shards were made otherwise than asked for:\n  " + "\n  ".join(other) + "\n"
            "Make others with jobs/shard.py and another --shards.root, or leave these settings out."
        )
    return index


def build_missing_shards(settings: Settings, console: Console) -> ShardIndex:
    """Makes the shards that a job finds missing, and tells of it. Needs a running Ray cluster.

    Raises:
        UserError: as `shard`.
    """
    console.print(f"No shards in {settings.shards.root} yet: making them from {settings.corpus.root}", highlight=False)
    outcome = shard(settings)
    console.print(describe_outcome(outcome), highlight=False)
    return outcome.index


def with_shard_settings(settings: AnySettings, index: ShardIndex) -> AnySettings:
    """The settings with what the shards were made with; words for people are the command's, where it has some."""
    words = {word: value for word in _WORDS if (value := getattr(settings.corpus, word))}
    return settings.model_copy(
        update={
            "corpus": index.corpus.model_copy(update=words),
            "shards": settings.shards.model_copy(update={"longer_side": index.longer_side}),
        }
    )
