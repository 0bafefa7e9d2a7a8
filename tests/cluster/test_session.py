from __future__ import annotations

import socket
from pathlib import Path

import pytest
import ray

from lungseg_ray.cluster import session
from lungseg_ray.errors import UserError

LONG = "/tmp/" + "long/" * 10 + "folder"


def test_folders_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket has at most 107 bytes; that of Ray is <folder>/ray/session_.../sockets/plasma_store."""
    for variable, folder, expected in (
        ("TMPDIR", "/tmp/short", None),
        ("TMPDIR", LONG, "/tmp/ray"),
        ("RAY_TMPDIR", "/tmp/short", None),
    ):
        monkeypatch.delenv("TMPDIR", raising=False)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(variable, folder)
        assert session._short_folder() == expected
    longest = "x" * session.LONGEST_FOLDER
    assert len(f"{longest}/ray/session_2026-11-29_08-09-30_123456_4194304/sockets/plasma_store") <= 107


def test_a_long_folder_without_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: expected a path of at most 36 bytes, found 61, .* Set RAY"):
        session._short_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", LONG)
    monkeypatch.setattr(session, "_TEMPORARY", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"^TMPDIR: expected a path"):
        session._short_folder()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_gone(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=rf"RAY_ADDRESS={address}: no Ray cluster answers there \(nothing listens"),
        session.cluster(processes=1),
    ):
        pass


@pytest.mark.own_cluster
def test_nothing_starts_ray_again() -> None:
    """As a thread would that waits for Ray when the job ends."""
    with session.cluster(processes=1):
        ray.put(1)
    with pytest.raises(Exception, match=r"ray\.init"):
        ray.put(1)
    assert not ray.is_initialized()
