"""What all sections of settings have in common, and operations on whole trees of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A branch of the tree: unknown keys are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def dump(settings: Section) -> str:
    """The whole tree as YAML, as `--config` reads it."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def non_default(section: Section) -> dict[str, Any]:
    """What of a section differs from its defaults, as a tree."""
    default = type(section)().model_dump()
    return _changed(default, section.model_dump())


def _changed(default: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict) and default[key]:
            inner = _changed(default[key], value)
            if inner:
                result[key] = inner
        elif value != default.get(key):
            result[key] = value
    return result


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A tree with the leaves of another in place of its own."""
    return {
        **base,
        **{
            key: merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
            for key, value in change.items()
        },
    }


def nested(key: str, value: Any) -> dict[str, Any]:
    """A tree that has one leaf, at a place such as `optim.lr`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """One line for each leaf in which two dumped trees differ: `train.seed: 0 -> 1`."""
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The places of all settings in a tree, such as `optim.lr`."""
    for name, info in tree.model_fields.items():
        branch = next((one for one in (info.annotation, *get_args(info.annotation)) if _is_section(one)), None)
        if branch:
            yield from leaves(branch, f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
