"""Writes `docs/settings.md`, the reference of all settings: python -m tests.docs.settings_page."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lungseg_ray.config import Dimension, Mark, Section, Settings, SweepJob
from lungseg_ray.jobs.command import SETTINGS
from lungseg_ray.storage import Location
from tests.helpers import ROOT

PAGE = ROOT / "docs" / "settings.md"
_HEAD = """# Settings

Every setting of every command, with its type, its default and its meaning. This page is generated from the settings
themselves by `python -m tests.docs.settings_page`; a test compares it.

A setting is given on the command line (`--train.epochs 3`), in the environment (`LUNGSEG_TRAIN__EPOCHS=3`) or in a
YAML file (`--config FILE`, or `LUNGSEG_CONFIG=FILE`). The command line takes precedence over the environment, the
environment over the file, and the file over the default. A setting that is given counts as asked for, also where its
value is the default: shards that were built with another value are then refused.

| mark | meaning |
|---|---|
| may change | may differ when a run or a sweep is resumed; others must stay, but `train.epochs` of a run may grow |
| fixed in shards | takes effect when shards are built; later commands take it from the shards |
| not searched | is the same for all trials of a sweep, and cannot be in its search space |
"""
_MARKS = {
    Mark.MAY_CHANGE: "may change",
    Mark.IN_SHARDS: "fixed in shards",
    Mark.NOT_SEARCHED: "not searched",
    Mark.DESCRIPTION: "description",
}
_SIMPLE = {int: "integer", float: "number", bool: "true or false", str: "text", Location: "path or address"}


def render() -> str:
    """The whole page."""
    shared = [(name, info) for name, info in Settings.model_fields.items()]
    lines = [_HEAD, "## Settings of `shard`, `train`, `tune` and `plan`", ""]
    for name, info in shared:
        marks = frozenset(mark for mark in info.metadata if isinstance(mark, Mark))
        if _is_section(info.annotation):
            lines += _section(info.annotation, f"{name}.", marks)
        else:
            lines += [f"### `{name}`", "", *_table({name: info}, "", marks), ""]
            lines += [part for one in get_args(info.annotation) for part in _section(one, f"{name}[].", marks)]
    lines += ["## Settings of `tune` alone", ""]
    lines += _section(SweepJob.model_fields["sweep"].annotation, "sweep.", frozenset())
    lines += _section(Dimension, "sweep.space.SETTING.", frozenset())
    for command, settings in SETTINGS.items():
        own = {name: info for name, info in settings.model_fields.items() if not _shared(name, info)}
        if own and command not in ("tune", "audit"):
            lines += [f"## Settings of `{command}` alone", "", *_table(own, "", frozenset()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(annotation: Any, prefix: str, marks: frozenset[Mark]) -> list[str]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, Section)
    purpose = (annotation.__doc__ or "").strip().splitlines()[0]
    leaves = {name: info for name, info in annotation.model_fields.items() if not _is_section(info.annotation)}
    lines = [f"### `{prefix[:-1]}`", "", purpose, "", *_table(leaves, prefix, marks), ""]
    for name, info in annotation.model_fields.items():
        if _is_section(info.annotation):
            more = frozenset(mark for mark in info.metadata if isinstance(mark, Mark))
            lines += _section(info.annotation, f"{prefix}{name}.", marks | more)
    return lines


def _table(fields: dict[str, Any], prefix: str, marks: frozenset[Mark]) -> list[str]:
    lines = ["| setting | type | default | meaning | marks |", "|---|---|---|---|---|"]
    for name, info in fields.items():
        own = marks | {mark for mark in info.metadata if isinstance(mark, Mark)}
        shown = [Mark.IN_SHARDS] if Mark.IN_SHARDS in own else [mark for mark in _MARKS if mark in own]
        named = ", ".join(_MARKS[mark] for mark in shown)
        kind, default = _type(info.annotation) + _bounds(info.metadata), _default(info)
        meaning = (info.description or "").replace("|", "\\|")
        lines.append(f"| `{prefix}{info.alias or name}` | {kind} | {default} | {meaning} | {named} |")
    return lines


def _bounds(metadata: list[Any]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    found = {key: getattr(one, key) for one in metadata for key in words if getattr(one, key, None) is not None}
    return "".join(f", {words[key]} {value}" for key, value in found.items())


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _shared(name: str, info: FieldInfo) -> bool:
    """Whether a setting is one of those that `shard`, `train`, `tune` and `plan` share."""
    return name in Settings.model_fields and Settings.model_fields[name].annotation == info.annotation


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    value = info.default if info.default is not PydanticUndefined else info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see its section"
    if value is None:
        return "none"
    if value == "" or value == {} or value == []:
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in args if one is not type(None)))
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"map from {_type(args[0])} to {_type(args[1])}"
    if _is_section(annotation):
        return f"section `{annotation.__name__}`"
    return _SIMPLE.get(annotation, "any value")


if __name__ == "__main__":
    PAGE.write_text(render())
