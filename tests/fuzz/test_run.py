from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz, table
from tests.fuzz.child import Notes


def test_a_target_is_fuzzed(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="fuzzing needs atheris: pip install -e '.[fuzz]'")
    row = fuzz("index-csv", tmp_path, seconds=3)
    assert row["inputs"] > 100
    assert row["findings"] == []
    assert table([row]).splitlines()[-1].startswith("| index-csv |")


def test_notes_survive_and_each_kind_of_finding_is_kept_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path, fresh=True)
    for data in (b"first", b"second"):
        notes.begin(data)
        notes.find("raises ValueError: no", "there.py:1", data)
    # As the process that started it sees it, after its end
    seen = Notes(tmp_path)
    assert (seen.last, seen.numbers[0]) == (b"second", 2)
    (found,) = seen.found()
    assert (found["what"], (tmp_path / found["input"]).read_bytes()) == ("raises ValueError: no", b"first")
    assert Notes(tmp_path, fresh=True).numbers[0] == 0
