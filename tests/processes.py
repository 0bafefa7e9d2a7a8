"""Jobs as real processes, and what they leave in the list of processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers import ROOT


def processes() -> dict[int, str]:
    """Command lines of the processes that live, zombies left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state != "Z" and command:
                found[int(entry.name)] = command
    return found


def ray_processes() -> set[int]:
    """Processes of Ray on this machine: raylets, control stores, workers."""
    return {
        pid
        for pid, command in processes().items()
        if "raylet" in command or "gcs_server" in command or command.startswith("ray::")
    }


def wait_until(condition: Callable[[], Any], *, seconds: float) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


class Job:
    """A job's process; a context that ends it, if it still lives, by its process id.

    Attributes:
        lines: what it has printed, with the time of each line.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
        within: Sequence[str] = (),
    ) -> None:
        inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [*within, python, "-u", str(ROOT / "jobs" / script), *arguments],
            env={**inherited, **(environment or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def output(self) -> str:
        """All that it has printed."""
        return "\n".join(line for _, line in self.lines)

    def count(self, pattern: str) -> int:
        """Lines that match."""
        return sum(re.search(pattern, line) is not None for _, line in self.lines)

    def saw(self, pattern: str, *, seconds: float = 120, times: int = 1) -> float:
        """Waits until a pattern was printed so many times; the time of that line.

        Raises:
            AssertionError: if it is not in time, or if the job ends before.
        """
        end = time.monotonic() + seconds
        while True:
            running = self.process.poll() is None
            if not running:
                self._reader.join(5)
            matching = [at for at, line in list(self.lines) if re.search(pattern, line)]
            if len(matching) >= times:
                return matching[times - 1]
            assert running, f"ended before it said {pattern!r}:\n{self.output}"
            assert time.monotonic() < end, f"did not say {pattern!r} within {seconds} s:\n{self.output}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Sends the driver a signal."""
        self.process.send_signal(number)

    def wait(self, *, seconds: float = 240) -> int:
        """Its exit code.

        Raises:
            AssertionError: if it does not end in time.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds} s:\n{self.output}") from None
        self._reader.join(5)
        return code

    def descendants(self) -> set[int]:
        """Processes that it has started, and those that they have."""
        return self.below(self.process.pid)

    @staticmethod
    def below(pid: int) -> set[int]:
        """Processes that a process has started, and those that they have."""
        parents = {}
        for one in processes():
            try:
                parents[one] = int(Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
        found = {pid}
        while True:
            more = {one for one, parent in parents.items() if parent in found} - found
            if not more:
                return found - {pid}
            found |= more

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
