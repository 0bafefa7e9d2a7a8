"""What a folder was started with: the settings and the shards that a run or a sweep must keep to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml
from pydantic import AliasChoices, Field

from lungseg_ray.config import Mark, Section, Settings, differences, dump, marked, value_at
from lungseg_ray.config.yaml_file import parse_yaml
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location

AnySettings = TypeVar("AnySettings", bound=Settings)
_PLACES = {"corpus.root", "shards.root"}


class StartedWith(Section, Generic[AnySettings]):
    """The content of a configuration file.

    Attributes:
        settings: The resolved tree of settings.
        shards: The fingerprint of the shards that are trained on.
    """

    # Sweeps called it `job` once.
    settings: AnySettings = Field(validation_alias=AliasChoices("settings", "job"))
    shards: str


@dataclass(frozen=True)
class ConfigFile(Generic[AnySettings]):
    """The file in which a folder keeps what it was started with.

    Attributes:
        place: The file.
        tree: The class of the settings in it.
        kind: What the folder holds, for messages: "run" or "sweep".
    """

    place: Location
    tree: type[AnySettings]
    kind: str

    def read(self) -> StartedWith[AnySettings]:
        """Reads the file.

        Raises:
            UserError: If there is no such file, or if it cannot be read.
        """
        folder, _, name = self.place.uri.rpartition("/")
        try:
            return StartedWith[self.tree].model_validate(parse_yaml(self.place.read_text()))  # type: ignore[name-defined]
        except FileNotFoundError:
            raise UserError(f"{folder}: there is no {self.kind} here: {name} is missing.") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{self.place}: cannot be read: {error}") from None

    def write(self, settings: AnySettings, *, fingerprint: str) -> None:
        """Writes the file.

        Args:
            settings: The resolved tree of settings.
            fingerprint: The fingerprint of the shards.
        """
        self.place.write_text(dump(StartedWith(settings=settings, shards=fingerprint)))

    def check(self, settings: AnySettings, *, fingerprint: str | None, may_grow: Collection[str] = ()) -> None:
        """Compares what a command asks for with the file; settings with `Mark.MAY_CHANGE` may differ.

        Args:
            settings: The settings of the command.
            fingerprint: The fingerprint of the shards; None while they are not built.
            may_grow: Keys of further settings, such as "train.epochs", whose value may be larger than before.

        Raises:
            UserError: If other settings or other shards are asked for, with each difference.
        """
        before = self.read()
        old, new = _comparable(before.settings), _comparable(settings)
        grown = {key for key in may_grow if value_at(new, key) > value_at(old, key)}
        ignored = {*marked(self.tree, Mark.MAY_CHANGE), *grown}
        if fingerprint is None:
            # Without shards, only their places say whether they would be the same.
            ignored -= _PLACES
        changed = list(differences(old, new, ignore=ignored))
        if fingerprint and before.shards != fingerprint:
            changed.append(f"shards in {settings.shards.root}: fingerprint {before.shards[:12]} -> {fingerprint[:12]}")
        if changed:
            raise UserError(
                f"{self.place.uri.rpartition('/')[0]}: this {self.kind} was started otherwise:\n  "
                + "\n  ".join(changed)
                + "\nUse another runs.name, or the former settings to go on."
            )


def _comparable(settings: Settings) -> dict[str, Any]:
    """Returns a tree of settings, without the places of corpora that their fingerprints tell apart."""
    tree = settings.model_dump(mode="json")
    for one in tree["corpora"]:
        if one["fingerprint"]:
            one.pop("root")
    return tree
