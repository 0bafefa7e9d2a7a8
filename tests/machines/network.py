"""Machines that share nothing but what they can reach over a wire, with namespaces of their own for network and mounts.

They live in the kernel of this machine, and need the rights of root.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.processes import wait_until

SWITCH, SWITCH_HOST = "lungswitch", "10.97.0.1"
"""The bridge that all wires end at, and the address of this machine on it."""
INTERFACE = "lan0"
"""The name of each machine's end of its wire."""
_TUNSETIFF, _TAP_WITHOUT_HEADER = 0x400454CA, 0x0002 | 0x1000
_FRAME = 1 << 16


def can_be_made() -> bool:
    """Whether this process may make namespaces and devices."""
    return os.geteuid() == 0 and Path("/dev/net/tun").exists() and Path("/usr/sbin/ip").exists()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class SlowWire:
    """A wire that delivers each frame late, and loses some.

    Args:
        number: of the machine, which becomes part of the names of its devices.
        delay: seconds.
        loss: share of the frames that are lost, 0 to 1.
    """

    def __init__(self, number: int, *, delay: float, loss: float) -> None:
        self.near, self.far = f"lungnear{number}", f"lungfar{number}"
        self._ends = [_tap(name) for name in (self.near, self.far)]
        self._delay, self._loss, self._random = delay, loss, random.Random(number)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._ended.is_set():
            until = waiting[0][0] - time.monotonic() if waiting else 0.2
            for end in select.select(self._ends, [], [], min(max(until, 0), 0.2))[0]:
                try:
                    frame = os.read(end, _FRAME)
                except OSError:
                    # The device is gone with its namespace.
                    continue
                if self._random.random() >= self._loss:
                    count += 1
                    other = self._ends[1 - self._ends.index(end)]
                    heapq.heappush(waiting, (time.monotonic() + self._delay, count, other, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, frame = heapq.heappop(waiting)
                try:
                    os.write(other, frame)
                except OSError:
                    # The device is down.
                    continue

    def end(self) -> None:
        """Removes it."""
        self._ended.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)


def _tap(name: str) -> int:
    """Makes an Ethernet device whose frames this process reads and writes; it ends with the file descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP_WITHOUT_HEADER))
    return descriptor


class Machine:
    """A machine on the switch, with its own `/tmp/ray` and `/dev/shm`.

    Args:
        number: its number, from 0.
        slow: its wire, if it is not an ordinary one.

    Attributes:
        host: its address.
        within: what to put before a command that is to run on it.
    """

    def __init__(self, number: int, slow: SlowWire | None = None) -> None:
        Path("/tmp/ray").mkdir(exist_ok=True)
        self.host = f"10.97.0.{10 + number}"
        self._slow = slow
        own = "mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", own])
        pid = str(self._holder.pid)
        assert wait_until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"), seconds=10)
        self.within: Sequence[str] = ("nsenter", "--target", pid, "--net", "--mount")
        self._end = slow.near if slow else f"lungwire{number}"
        inside = slow.far if slow else f"lungpeer{number}"
        if not slow:
            _run("ip", "link", "add", self._end, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", inside, "netns", pid)
        _run("ip", "link", "set", self._end, "master", SWITCH, "up")
        for command in (
            "link set lo up",
            f"link set {inside} name {INTERFACE}",
            f"addr add {self.host}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
        ):
            _run(*self.within, "ip", *command.split())

    def cut(self) -> None:
        """Lets no packet pass any more, in either direction."""
        _run("ip", "link", "set", self._end, "down")

    def mend(self) -> None:
        """Lets packets pass again."""
        _run("ip", "link", "set", self._end, "up")

    def processes(self) -> dict[int, str]:
        """The processes on it, and their commands."""
        own = Path(f"/proc/{self._holder.pid}/ns/net").readlink()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "ns/net").readlink() == own:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def end(self) -> None:
        """Removes it, and ends the processes on it: Ray's agents outlive their node by minutes."""
        for pid in self.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._holder.wait()
        if self._slow:
            self._slow.end()


class Network:
    """A switch with machines on it, for the time of the block.

    Args:
        slow: for each machine the delay and the loss of its wire; (0, 0) for an ordinary one.

    Attributes:
        machines: the machines.
    """

    def __init__(self, slow: Sequence[tuple[float, float]]) -> None:
        self._slow = slow
        self.machines: list[Machine] = []

    def __enter__(self) -> Self:
        _run("ip", "link", "add", SWITCH, "type", "bridge")
        try:
            _run("ip", "addr", "add", f"{SWITCH_HOST}/24", "dev", SWITCH)
            _run("ip", "link", "set", SWITCH, "up")
            for number, (delay, loss) in enumerate(self._slow):
                wire = SlowWire(number, delay=delay, loss=loss) if delay else None
                self.machines.append(Machine(number, wire))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.end()
        _run("ip", "link", "delete", SWITCH)
        # The kernel removes the wires of a machine some time after its last process.
        assert wait_until(lambda: not [*Path("/sys/class/net").glob("lungwire*")], seconds=30), "wires were left behind"
