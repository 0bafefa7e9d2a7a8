"""Reads the settings of a job from a YAML file, the environment and the command line."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliApp,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from lungseg_ray.config.tree import Section, leaves, merge
from lungseg_ray.config.values import ENVIRONMENT_PREFIX, PHANTOM, SALT, SERVICE_PREFIX
from lungseg_ray.config.yaml_file import parse_yaml
from lungseg_ray.errors import UserError

AnyJob = TypeVar("AnyJob", bound=Section)


def load_settings(tree: type[AnyJob], arguments: Sequence[str]) -> AnyJob:
    """Reads the settings of a job.

    The command line takes precedence over the environment (`LUNGSEG_...`), the environment over the YAML file that
    `--config` or `LUNGSEG_CONFIG` names, and the file over the defaults. Options may be written with dashes instead of
    underscores.

    Args:
        tree: The class of the job's settings.
        arguments: The arguments of the command line.

    Returns:
        The settings. Their `model_fields_set` contains what the file, the environment or the command line set.

    Raises:
        UserError: If a key is unknown, a value does not fit, a required setting is missing, or the file cannot be read;
            the message names each of these settings.
        SystemExit: If the arguments contain `--help`, after the help is printed; the exit code is 0.
    """
    arguments = [
        re.sub(r"^--[a-z][\w.-]*", lambda name: "--" + name[0][2:].replace("-", "_"), one) for one in arguments
    ]
    arguments, roots = _roots(arguments)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", action="append")
    paths = early.parse_known_args(arguments)[0].config or []
    if len(paths) > 1:
        raise UserError(f"--config is given {len(paths)} times ({', '.join(paths)}); expected one file of settings.")
    path = paths[0] if paths else os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    from_file = _read_yaml(path) if path else {}
    _refuse_unknown(tree, from_file)
    # The parser would unite a map of the file with one of the command line, which is to replace it.
    from_file, maps = _apart(from_file)

    class Sources(BaseSettings):
        model_config = SettingsConfigDict(
            extra="forbid",
            env_prefix=ENVIRONMENT_PREFIX,
            env_nested_delimiter="__",
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_use_class_docs_for_groups=True,
            cli_exit_on_error=False,
            cli_prog_name=Path(sys.argv[0]).name,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return sources["env_settings"], InitSettingsSource(settings_cls, init_kwargs=from_file)

    fields: dict[str, Any] = {name: (info.annotation, info) for name, info in tree.model_fields.items()}
    config = Field(None, description="YAML file of settings; the environment and the command line override it.")
    parser = create_model(tree.__name__, __base__=Sources, __doc__=tree.__doc__, config=(str | None, config), **fields)
    try:
        found = CliApp.run(parser, cli_args=list(arguments)).model_dump(exclude={"config"}, exclude_unset=True)
        found = merge(maps, found)
        if roots:
            found = merge(found, {"corpus": {"root": roots if len(roots) > 1 else roots[0]}})
        return tree.model_validate(found)
    except ValidationError as error:
        raise UserError(_explain(error, tree)) from None
    except SettingsError as error:
        raise UserError(_explain_arguments(str(error), tree)) from None


def _roots(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes --corpus.root, which may be given several times, out of the arguments.

    Its values are paths, which the parser would split at a comma.

    Returns:
        The other arguments, and the roots.

    Raises:
        UserError: If the option has no value, or a list that is not JSON.
    """
    option, rest, roots = "--corpus.root", [], []
    words = iter(arguments)
    for word in words:
        if word != option and not word.startswith(f"{option}="):
            rest.append(word)
            continue
        value = next(words, "") if word == option else word.partition("=")[2]
        if not value.strip() or value.startswith("--"):
            found = f"the option {value}" if value.strip() else "nothing"
            raise UserError(f"{option}: expected a folder, an s3:// prefix, a table or {PHANTOM}, found {found}.")
        roots += _listed(option, value)
    return rest, roots


def _listed(option: str, value: str) -> list[str]:
    """Returns the paths in a JSON list, or the value itself."""
    if not value.startswith('["'):
        return [value]
    try:
        paths = json.loads(value)
    except ValueError as error:
        raise UserError(f"{option}: expected a path or a JSON list of paths, found {value} ({error}).") from None
    return [str(path) for path in paths]


def _apart(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a tree of settings without those whose value is a map of plain values, and these alone."""
    rest: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    for key, value in tree.items():
        if key in Section.maps:
            maps[key] = value
        elif isinstance(value, dict):
            rest[key], inner = _apart(value)
            maps |= {key: inner} if inner else {}
        else:
            rest[key] = value
    return rest, maps


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = parse_yaml(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}). Expected a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: is no YAML file of settings: {error}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"--config {path}: expected sections such as 'train:', found {type(content).__name__}.")
    return content or {}


def _refuse_unknown(tree: type[Section], from_file: dict[str, Any]) -> None:
    """Refuses a section that does not exist in the environment, and `config` in the file; the parser accepts both.

    Raises:
        UserError: If there is such a section or key.
    """
    if "config" in from_file:
        raise UserError("config: a file of settings cannot name another.")
    for name in os.environ:
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if not name.startswith(ENVIRONMENT_PREFIX) or name == SALT or name.startswith(SERVICE_PREFIX):
            continue
        if key.split(".")[0] not in (*tree.model_fields, "config"):
            raise UserError(f"{name}: there is no such setting.{suggest(key, tree)}")


def suggest(key: str, tree: type[BaseModel]) -> str:
    """Returns a sentence that names the setting with the key nearest to an unknown one.

    Args:
        key: The unknown key, such as `train.epoch`.
        tree: The class of the settings.

    Returns:
        The sentence, with a space before it. If no key is near, it refers to `--help`.
    """
    near = difflib.get_close_matches(key, list(leaves(tree)), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else " --help lists all settings."


def validated(tree: type[AnyJob], values: dict[str, Any]) -> AnyJob:
    """Builds the settings of a job from values of several sources.

    Args:
        tree: The class of the job's settings.
        values: The values by section.

    Raises:
        UserError: If a key is unknown, a value does not fit, or values do not fit one another.
    """
    try:
        return tree.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, tree)) from None


def _explain(error: ValidationError, tree: type[BaseModel]) -> str:
    lines = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            lines.append(f"{key}: there is no such setting.{suggest(key, tree)}")
        elif detail["type"] == "missing":
            lines.append(f"--{key} is needed: {tree.model_fields[key].description if key in tree.model_fields else ''}")
        elif detail["type"] == "value_error":
            lines.append((f"{key}: " if key else "") + detail["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, found {detail['input']!r}")
    return "\n".join(lines)


def _explain_arguments(message: str, tree: type[BaseModel]) -> str:
    unknown = re.search(r"unrecognized arguments: --(\S+)", message)
    if unknown:
        key = unknown.group(1).split("=")[0]
        return f"--{key}: there is no such setting.{suggest(key, tree)}"
    return message.removeprefix("error parsing CLI: ")
