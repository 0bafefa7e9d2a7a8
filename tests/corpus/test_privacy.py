from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lungseg_ray.corpus.privacy import Salt, find_salt
from lungseg_ray.errors import UserError

SECRET = "x" * 32


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LUNGSEG_SALT", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_a_key_depends_on_salt_kind_and_text() -> None:
    salt = Salt("here", SECRET.encode())
    keys = {
        salt.key("patient", "4711"),
        salt.key("study", "4711"),
        salt.key("patient", "4712"),
        Salt("there", b"y" * 32).key("patient", "4711"),
    }
    assert len(keys) == 4
    assert salt.key("patient", "4711") in keys
    # It is no plain hash, which anybody could try out.
    assert hashlib.sha256(b"4711").hexdigest()[:16] not in keys


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(Salt("here", SECRET.encode()))


def test_the_variable(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", SECRET)
    assert find_salt() == Salt("LUNGSEG_SALT", SECRET.encode())
    assert not (home / "lungseg-ray").exists()
    monkeypatch.setenv("LUNGSEG_SALT", "short")
    with pytest.raises(UserError, match="at least 16 characters, found 5") as caught:
        find_salt()
    assert "short" not in str(caught.value)


def test_a_file_is_made_once_for_this_user_alone(home: Path) -> None:
    first, second = find_salt(), find_salt()
    assert first == second
    place = home / "lungseg-ray/salt"
    assert first.source == str(place)
    assert place.stat().st_mode & 0o077 == 0
    assert [path.name for path in place.parent.iterdir()] == ["salt"]
    place.unlink()
    assert find_salt() != first


def test_a_file_that_is_there_is_read_alone(home: Path) -> None:
    # As a secret that is mounted read-only, with the newline that an editor leaves.
    (home / "lungseg-ray").mkdir()
    (home / "lungseg-ray/salt").write_text(f"{SECRET}\n")
    (home / "lungseg-ray").chmod(0o500)
    assert find_salt().key("patient", "4711") == Salt("", SECRET.encode()).key("patient", "4711")


def test_a_file_that_is_no_secret(home: Path) -> None:
    (home / "lungseg-ray").mkdir()
    (home / "lungseg-ray/salt").write_text("")
    with pytest.raises(UserError, match="Delete it"):
        find_salt()


def test_no_place_for_it(home: Path) -> None:
    (home / "lungseg-ray").write_text("a file")
    with pytest.raises(UserError, match="LUNGSEG_SALT"):
        find_salt()
