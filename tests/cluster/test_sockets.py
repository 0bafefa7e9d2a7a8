"""What a local cluster listens on and whom it asks: this machine alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Job

_PROGRAM = """
import sys
from lungseg_ray.cluster.session import cluster
import ray

@ray.remote
def work():
    return 1

with cluster(processes=1):
    assert sum(ray.get([work.remote() for _ in range(4)])) == 4
    print("running", flush=True)
    sys.stdin.readline()
"""
_LISTENING = "0A"


def listening(pids: set[int]) -> set[str]:
    """The addresses, hexadecimal as the kernel writes them, that these processes listen on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.update(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.own_cluster
def test_a_local_cluster_listens_on_this_machine_alone() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert program.stdin
    assert program.stdout
    try:
        assert program.stdout.readline() == "running\n"
        found = listening({program.pid, *Job.below(program.pid)})
        assert found
        assert found <= LOOPBACK
    finally:
        program.stdin.close()
        program.wait(60)


@pytest.mark.own_cluster
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_whom_a_local_cluster_asks(tmp_path: Path) -> None:
    """Of the calls of the driver and all that it starts, those alone leave the machine that docs/security.md names."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "trace=connect,sendto",
        "-o",
        str(tmp_path / "calls"),
        sys.executable,
        "-c",
        _PROGRAM,
    ]
    subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=True, timeout=240)
    asked = set(
        re.findall(r"inet_addr\(\"([^\"]+)\"\)|inet_pton\(AF_INET6, \"([^\"]+)\"", (tmp_path / "calls").read_text())
    )
    nameservers = set(re.findall(r"^nameserver (\S+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE))
    own = {"127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"}
    found = {one or other for one, other in asked}
    assert "127.0.0.1" in found
    assert found <= own | nameservers | {"169.254.169.254"}
