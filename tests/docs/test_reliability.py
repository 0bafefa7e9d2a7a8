"""Each row of the table of faults names a test that is there, and each of these tests has a row."""

from __future__ import annotations

import re

from tests.helpers import ROOT


def test_rows_and_tests_match() -> None:
    rows = set(re.findall(r"`(test_\w+\.py::test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    made = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests/faults").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)\([^)]*record: Record", path.read_text())
    }
    assert rows == made
    assert len(rows) > 15
