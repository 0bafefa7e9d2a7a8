"""Decides whether existing shards fit the settings of a job, and builds the shards if there are none."""

from __future__ import annotations

from typing import TypeVar

from rich.console import Console

from lungseg_ray.config import Mark, Settings, differences, explicitly_set, marked, merge, select, value_at
from lungseg_ray.errors import UserError
from lungseg_ray.shards.index import INDEX, ShardIndex, read_index
from lungseg_ray.storage import Location

_DEFAULTS = Settings().model_dump()
AnySettings = TypeVar("AnySettings", bound=Settings)


def find_shards(root: Location, settings: Settings) -> ShardIndex | None:
    """Finds the shards in a folder, and checks that they fit the settings of a job.

    Args:
        root: The folder of the shards.
        settings: The settings of the job. Only settings that the user set explicitly are compared with the shards.

    Returns:
        The index of the shards; None if they must be built.

    Raises:
        UserError: If the shards were built with other settings than the user asks for, or if the index cannot be used.
        OSError: If a disk, or a bucket (`StorageError`), does not answer.
    """
    if not (root / INDEX).exists():
        return None
    index = read_index(root)
    built = {"corpus": index.corpus.model_dump(), "shards": {"longer_side": index.longer_side}}
    asked = select(explicitly_set(settings), {"corpus", "shards.longer_side"})
    # Where a setting has the default that stands for "found out", the shards have what was found.
    found = {key for key in marked(Settings, Mark.FOUND) if value_at(asked, key) == value_at(_DEFAULTS, key)}
    ignore = {*marked(Settings, Mark.DESCRIPTION), *found}
    changed = list(differences(built, merge(built, asked), ignore=ignore))
    if changed:
        raise UserError(
            f"{root}: these shards were made otherwise than asked for:\n  " + "\n  ".join(changed) + "\n"
            "Make others with jobs/shard.py and another --shards.root, or leave these settings out."
        )
    return index


def changed_corpus(settings: Settings, index: ShardIndex) -> str:
    """Compares the files of the corpus with those that shards were built from.

    Args:
        settings: The settings of the job.
        index: The index of the shards.

    Returns:
        A sentence for the user; empty if the user does not name the corpus, if nothing has changed, or if the corpus is
        not there any more, since shards need none.
    """
    if "root" not in settings.corpus.model_fields_set or not index.files:
        return ""
    from lungseg_ray.corpus.layouts import files_state

    try:
        now = files_state(settings.corpus, settings.outputs)
    except (UserError, OSError):
        return ""
    if [tuple(state) for state in now] == index.files:
        return ""
    before, after = sum(count for count, _ in index.files), sum(state.files for state in now)
    what = f"has {after} files, and had {before}" if before != after else "has other files"
    return (
        f"The corpus {settings.corpus.root} {what} when the shards in {settings.shards.root} were built, on which this "
        "job trains. To train on all of it, build shards of it: python jobs/shard.py with these settings and another "
        "--shards.root, and another --runs.name."
    )


def build_missing_shards(settings: Settings, console: Console) -> ShardIndex:
    """Builds the shards of a job that finds none, and informs the user. Needs a running Ray cluster.

    Args:
        settings: The settings of the job.
        console: The console that the user reads.

    Returns:
        The index of the new shards.

    Raises:
        UserError: If the shards cannot be built from this corpus with these settings, as in `shard`.
        OSError: If the corpus cannot be read or a shard cannot be written.
    """
    console.print(f"No shards in {settings.shards.root} yet: making them from {settings.corpus.root}", highlight=False)
    # Most jobs find shards, and need none of what reads a corpus.
    from lungseg_ray.shards.build import shard
    from lungseg_ray.shards.describe import describe_outcome

    outcome = shard(settings, lambda text: console.print(text, highlight=False))
    console.print(describe_outcome(outcome), highlight=False)
    return outcome.index


def with_shard_settings(settings: AnySettings, index: ShardIndex) -> AnySettings:
    """Replaces the settings of a job that concern the corpus and its shards with those that the shards were built with.

    Args:
        settings: The settings of the job. Its descriptions of the data (`corpus.about`, `corpus.licence`) are kept
            unless they are empty.
        index: The index of the shards.

    Returns:
        A copy of the settings.
    """
    described = select(settings.model_dump(), set(marked(Settings, Mark.DESCRIPTION)))["corpus"]
    given = {key: text for key, text in described.items() if text}
    return settings.model_copy(
        update={
            "corpus": index.corpus.model_copy(update=given),
            "shards": settings.shards.model_copy(update={"longer_side": index.longer_side}),
        }
    )
