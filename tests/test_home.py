"""Processes without a home folder, as in containers that run as a user without an account."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from lungseg_ray import home
from lungseg_ray.corpus.privacy import find_salt
from lungseg_ray.errors import UserError


@pytest.mark.parametrize("value", ["/nonexistent", None])
def test_a_home_that_can_be_written_takes_its_place(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "LUNGSEG_SALT", "XDG_CONFIG_HOME"):
        # Set first, so that whatever is there after the test goes.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if value:
        monkeypatch.setenv("HOME", value)

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    home.ensure_home()
    assert Path.home() == tmp_path / f"lungseg-ray-home-{os.getuid()}"
    assert (Path.home().stat().st_mode & 0o777, os.environ["USER"]) == (0o700, f"uid{os.getuid()}")
    # Keys of patients must not change with the machine.
    with pytest.raises(UserError, match=r"^HOME: there is no home folder .* Set LUNGSEG_SALT"):
        find_salt()


def test_a_file_that_has_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/nonexistent")
    (tmp_path / f"lungseg-ray-home-{os.getuid()}").write_text("of another user")
    home.ensure_home()
    assert Path.home().is_dir()
    assert Path.home().parent == tmp_path


def test_a_home_that_is_there_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home.ensure_home()
    assert Path.home() == tmp_path
    assert not home.is_temporary()
