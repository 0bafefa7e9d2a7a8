"""Prints the lowest versions of the direct dependencies that pyproject.toml allows, as constraints for pip.

PyTorch is left out: wheels as old as its bound bring gigabytes of GPU libraries. `make test-lowest` installs the
pinned one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("cluster", "track", "dev")
PINNED = "torch"
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(\[[\w,]+\])?>=(?P<version>[\d.]+)(,<[\d.]+)?")


def lowest() -> list[str]:
    """One line `name==version` for each direct dependency; the version is its lower bound."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(text for extra in EXTRAS for text in project["optional-dependencies"][extra]),
    ]
    lines = []
    for text in requirements:
        if text.startswith(f"{project['name']}["):
            continue
        found = REQUIREMENT.fullmatch(text)
        if found is None:
            raise ValueError(f"{PROJECT.name}: {text!r} is not NAME>=VERSION or NAME>=VERSION,<VERSION")
        if found["name"] != PINNED:
            lines.append(f"{found['name']}=={found['version']}")
    return sorted(set(lines))


if __name__ == "__main__":
    print("\n".join(lowest()))
