"""Reads YAML files: each key counts once, and what a few bytes can expand to is bounded."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_CHARACTERS = 1 << 22
_MOST_NODES = 100_000
"""The maximum number of values after aliases are replaced by what they name, which a few lines can make billions."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                continue
            if key in seen:
                raise yaml.YAMLError(f"{key} is given twice, in line {seen[key]} and in line {line}; expected it once")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str) -> Any:
    """Parses the content of a YAML file.

    Args:
        text: The content.

    Returns:
        Dictionaries, lists and plain values.

    Raises:
        YAMLError: If the content is not YAML, gives a key twice, or is too large.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"expected at most {_MOST_CHARACTERS} characters, found {len(text)}")
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None and _size(root, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"expected at most {_MOST_NODES} values, found more")
        return yaml.load(text, Loader=_Loader)
    except (RecursionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise yaml.YAMLError(f"expected plain values in sections, found others ({error})") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values of a node, those that aliases name counted each time."""
    if id(node) in known:
        return known[id(node)]
    # An alias to a node that contains it would be without end.
    known[id(node)] = _MOST_NODES
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
