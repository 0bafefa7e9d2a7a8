"""The Dockerfile: what a linter says, and that the files it copies are sent to the builder."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from tests.helpers import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def test_the_linter_is_content() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([linter, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_finds_a_mistake(tmp_path: Path) -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    (tmp_path / "Dockerfile").write_text(TEXT.replace("python:3.11-slim-bookworm", "python:latest"))
    done = subprocess.run([linter, "--no-color", str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_what_is_copied_is_there_and_is_sent() -> None:
    copied = [word for line in TEXT.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert all((ROOT / name).exists() for name in copied)


def test_it_runs_as_a_user_without_rights() -> None:
    users = [line for line in TEXT.splitlines() if line.startswith("USER")]
    assert users == ["USER 1000"]
