"""The base class of all sections of settings, the marks of settings, and operations on whole trees of settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A branch of the tree of settings. Unknown keys are refused, and values cannot be changed once they are read.

    Attributes:
        maps: The names of the settings of all sections whose value is a map of plain values.
    """

    maps: ClassVar[set[str]] = set()
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, serialize_by_alias=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, info in cls.model_fields.items():
            if get_origin(info.annotation) is dict and _section_of(get_args(info.annotation)[1]) is None:
                Section.maps.add(name)


class Mark(Enum):
    """A property of a setting that other parts of the system act on; part of the annotation of its field.

    A mark on a section holds for all settings in it.
    """

    MAY_CHANGE = "may change when a run or a sweep is resumed"
    NOT_SEARCHED = "is the same for all trials of a sweep"
    IN_SHARDS = "takes effect when shards are built, and is then fixed"
    OF_FILES = "describes the files of one corpus, and does not hold for another one"
    FOUND = "is found out from the files where it has its default value"
    DESCRIPTION = "is text for people, and affects no result"


def marked(tree: type[BaseModel], mark: Mark, prefix: str = "") -> Iterator[str]:
    """Yields the keys of all settings that have a mark, such as `train.workers`.

    Args:
        tree: The class of the tree or of a section.
        mark: The mark.
        prefix: The prefix of the keys, such as "train." for the section `train`.

    Yields:
        The keys, in the order of the fields.
    """
    for field, info in tree.model_fields.items():
        name, branch = info.alias or field, _section_of(info.annotation)
        if mark in info.metadata:
            yield from leaves(branch, f"{prefix}{name}.") if branch else (prefix + name,)
        elif branch:
            yield from marked(branch, mark, f"{prefix}{name}.")


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the keys of all settings of a tree, such as `optim.lr`.

    Args:
        tree: The class of the tree or of a section.
        prefix: The prefix of the keys, such as "train." for the section `train`.

    Yields:
        The keys, in the order of the fields.
    """
    for field, info in tree.model_fields.items():
        name, branch = info.alias or field, _section_of(info.annotation)
        if branch:
            yield from leaves(branch, f"{prefix}{name}.")
        else:
            yield prefix + name


def explicitly_set(section: Section) -> dict[str, Any]:
    """Returns the settings of a section that a file, the environment or the command line has set, as a tree.

    A setting that is set to its default value is included.
    """
    return section.model_dump(exclude_unset=True)


def non_default(section: Section) -> dict[str, Any]:
    """Returns the settings of a section that differ from their defaults, as a tree."""
    default = type(section)().model_dump()
    return _changed(default, section.model_dump())


def select(tree: Mapping[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    """Returns the part of a dumped tree whose leaves are among some keys.

    Args:
        tree: The dumped tree.
        keys: The keys to keep, such as `optim.lr`. The key of a section keeps the whole section.
        prefix: The prefix of the keys of the tree, such as "train." for the section `train`.
    """
    found = {}
    for name, value in tree.items():
        key = prefix + name
        if key in keys:
            found[name] = value
        elif isinstance(value, dict) and (inner := select(value, keys, f"{key}.")):
            found[name] = inner
    return found


def dump(settings: Section) -> str:
    """Returns the whole tree as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Returns a dumped tree in which the leaves of `change` replace those of `base`."""
    return {
        **base,
        **{
            key: merge(base[key], value)
            if isinstance(value, dict) and isinstance(base.get(key), dict) and key not in Section.maps
            else value
            for key, value in change.items()
        },
    }


def nested(key: str, value: Any) -> dict[str, Any]:
    """Returns a tree with a single leaf at a key such as `optim.lr`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a key such as `optim.lr` of a dumped tree; None if the tree has none."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Collection[str] = (), prefix: str = ""
) -> Iterator[str]:
    """Yields a line for each leaf in which two dumped trees differ, such as `train.seed: 0 -> 1`.

    Args:
        old: The tree before.
        new: The tree after.
        ignore: Keys that may differ. The key of a section includes the whole section.
        prefix: The prefix of the keys, such as "train." for the section `train`.

    Yields:
        The lines: first in the order of `old`, then those of keys that only `new` has.
    """
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if prefix + key in ignore:
            continue
        if isinstance(before, dict) and isinstance(after, dict) and key not in Section.maps:
            yield from differences(before, after, ignore=ignore, prefix=f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"


def _changed(default: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict) and key not in Section.maps:
            inner = _changed(default[key], value)
            if inner:
                result[key] = inner
        elif value != default.get(key):
            result[key] = value
    return result


def _section_of(annotation: Any) -> type[Section] | None:
    """Returns the class of the section that an annotation names, alone or in a union; None for a leaf."""
    optional = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for one in (annotation, *optional):
        if isinstance(one, type) and issubclass(one, Section):
            return one
    return None
