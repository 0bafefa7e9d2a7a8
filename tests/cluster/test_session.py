from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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


_TWICE = """
import os, ray
from lungseg_ray.cluster.session import cluster

for _ in range(2):
    with cluster(processes=1):
        assert ray.get(ray.put(1)) == 1
    assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE"} & os.environ.keys()
    try:
        ray.put(1)
    except Exception as error:
        print(type(error).__name__, ray.is_initialized())
# Ray by itself, whose token is another one.
ray.init(address="local", num_cpus=1, include_dashboard=False)
print(ray.get(ray.put(2)))
"""


@pytest.mark.own_cluster
def test_one_after_the_other() -> None:
    """Nothing starts Ray again in between, as a thread would that waits for it when a job ends."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    found = subprocess.run([sys.executable, "-c", _TWICE], env=inherited, capture_output=True, text=True, timeout=120)
    assert found.stdout == "RaySystemError False\nRaySystemError False\n2\n", found.stderr


_STOPPED = """
import os, psutil, ray, signal
from lungseg_ray.cluster.session import cluster

@ray.remote
class Worker:
    def pid(self):
        return os.getpid()

with cluster(processes=1):
    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    os.kill(pid, signal.SIGSTOP)
print(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
"""


@pytest.mark.own_cluster
def test_no_process_is_left() -> None:
    """A process that hangs in its end, which a signal stands for here, is ended with its cluster."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    found = subprocess.run([sys.executable, "-c", _STOPPED], env=inherited, capture_output=True, text=True, timeout=120)
    assert found.stdout == "False\n", found.stderr


_LEFT_OPEN = """
import threading, ray
from lungseg_ray.cluster.session import cluster
from lungseg_ray.termination import reported_by

def read():
    for row in ray.data.range(1000, override_num_blocks=1000).iter_rows():
        if row["id"] == 3:
            raise OSError("The disk is full.")

stop = ray.shutdown

def shutdown():
    print([thread.name for thread in threading.enumerate() if thread.name == "iter_threaded"])
    stop()

ray.shutdown = shutdown
try:
    with reported_by(print), cluster(processes=1):
        read()
except OSError:
    pass
"""


@pytest.mark.own_cluster
def test_errors_are_told_before_ray_ends() -> None:
    """Nothing asks Ray for blocks after its end, which would end the process; and if something did, all is told."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, "-c", _LEFT_OPEN], env=inherited, capture_output=True, text=True, timeout=120
    )
    assert found.stdout == "The disk is full.\n[]\n", found.stderr
