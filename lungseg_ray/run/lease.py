"""The lease of a run: the right of one driver at a time to write its folder, on a disk or in a bucket.

A lease is a numbered file in the folder of the run. The highest number counts, and a file can be created only once
(`Location.create`), so that of any number of drivers exactly one gets the next number. The file stays when the lease is
given back, so that no number is ever used twice. A driver that finds a higher number than the one that it has just
created was too slow, and starts again. The owner rewrites its file again and again, and other drivers see that its
heartbeat grows; no clocks are compared. An owner that finds a higher number has lost the run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.storage import Location

BEAT_SECONDS = 10.0
"""Seconds between two heartbeats of an owner."""
SILENCE_SECONDS = 35.0
"""Seconds without a heartbeat after which an owner on another machine is considered dead."""
_HIGHEST = 10**12
_NAME = re.compile(r"lease-(\d{6,18})\.json")


@dataclass(frozen=True)
class Owner:
    """The driver that holds a run.

    Attributes:
        host: The name of the machine, for people.
        machine: Identifies the boot of the machine and the process namespace.
        pid: The process id of the driver.
        born: The start time of that process, in ticks since the boot; distinguishes it from a later process with the
            same id.
        since: The time at which it took the run, for people.
        beat: The heartbeat, a number that grows while the driver lives.
        ended: Whether it has given the lease back.
    """

    host: str
    machine: str
    pid: int
    born: str
    since: str
    beat: int = 0
    ended: bool = False

    @classmethod
    def here(cls) -> Owner:
        """Returns this process as an owner."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _born(pid), time.strftime("%Y-%m-%d %H:%M:%S %Z"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class LeaseToken:
    """Proves, in any process, that a driver holds a run.

    Attributes:
        run: The folder of the run.
        owner: The driver.
    """

    run: Location
    owner: Owner

    def check(self) -> None:
        """Reads from the storage whether the owner still holds the run.

        Raises:
            JobFailedError: If another driver has taken the run over.
            OSError: If the storage does not answer.
        """
        newest = _newest(self.run)
        other = _owner(newest) if newest else None
        if other is None or replace(other, beat=0) != self.owner:
            raise JobFailedError(
                f"{self.run}: the run was taken over by {other or 'nobody known'} while this driver was not heard. "
                "This one stops, and leaves the run to it."
            )


class Lease:
    """A lease that is held.

    Attributes:
        token: For processes that write in the name of the driver.
        taken_over_from: The driver that held the run before and is dead; None if there was none.
    """

    def __init__(self, token: LeaseToken, place: Location, *, taken_over_from: Owner | None = None) -> None:
        self.token = token
        self.taken_over_from = taken_over_from
        self._place = place
        self._beats = 0
        self._lost: JobFailedError | None = None

    def check(self) -> None:
        """Checks, without asking the storage, whether the lease is known to be lost.

        Raises:
            JobFailedError: If another driver has taken the run over.
        """
        if self._lost:
            raise self._lost

    def beat(self) -> None:
        """Writes a heartbeat, and notes whether another driver has taken over."""
        try:
            self.token.check()
        except JobFailedError as error:
            self._lost = error
            return
        self._beats += 1
        self._place.write_text(json.dumps(asdict(replace(self.token.owner, beat=self._beats))))

    def release(self) -> None:
        """Ends the lease, if this driver still holds it."""
        try:
            self.token.check()
        except JobFailedError:
            return
        self._place.write_text(json.dumps(asdict(replace(self.token.owner, ended=True))))


@contextmanager
def acquire(run: Location, note: Callable[[str], None]) -> Iterator[Lease]:
    """Holds the lease of a run for the time of the block.

    Args:
        run: The folder of the run.
        note: Called with a message about a takeover, and about a storage that cannot guarantee the lease.

    Yields:
        The lease.

    Raises:
        UserError: If another driver holds the run and is alive.
    """
    owner = Owner.here()
    if not run.supports_exclusive_create():
        note(f"{run}: the storage does not honour conditional writes; two drivers that start at once go unnoticed.")
    place, before = _acquire(run, owner, note)
    lease = Lease(LeaseToken(run, owner), place, taken_over_from=before)
    end = threading.Event()

    def work() -> None:
        while not end.wait(BEAT_SECONDS):
            try:
                lease.beat()
            except OSError:
                # A driver that takes over meanwhile is noticed as soon as the storage answers again.
                continue

    heartbeat = threading.Thread(target=work, name="lease", daemon=True)
    heartbeat.start()
    try:
        yield lease
    finally:
        end.set()
        heartbeat.join()
        try:
            lease.release()
        except OSError as error:
            note(f"The lease {place} could not be given back ({error}); it lapses by itself.")


def _acquire(run: Location, owner: Owner, note: Callable[[str], None]) -> tuple[Location, Owner | None]:
    """Creates the next lease; returns its file, and the dead driver that held the run before."""
    while True:
        newest = _newest(run)
        other = _owner(newest) if newest else None
        held = newest is not None and not (other and other.ended)
        if newest and other and not other.ended:
            alive = _alive(newest, other, note)
            if alive:
                raise UserError(
                    f"{run}: this folder is held by {other}. Wait until it ends, stop it, or use another folder "
                    "(runs.name, shards.root)."
                )
            if alive is None:
                continue
        if newest and _number(newest) > _HIGHEST:
            raise UserError(f"{newest}: no driver writes a lease of this number. Delete it.")
        place = run / f"lease-{_number(newest) + 1:06d}.json"
        if not place.create(json.dumps(asdict(owner)).encode()):
            if place.exists() and not place.is_file():
                raise UserError(f"{place}: expected a lease, found something else. Delete it.")
            continue
        if _newest(run) != place:
            # While this driver looked, others have taken the run, given it back, and removed older leases.
            place.delete()
            continue
        if held:
            note(f"Taking the run over from {other or 'a driver'} that is no more.")
        for old in _leases(run):
            if _number(old) < _number(place):
                old.delete()
        return place, other if held else None


def _alive(place: Location, owner: Owner, note: Callable[[str], None]) -> bool | None:
    """Whether the owner of a lease lives; listens for its heartbeat if it runs on another machine.

    Returns:
        None if the lease was given back meanwhile, or another one has taken its place.
    """
    if owner.machine == _machine() and owner.born:
        return _born(owner.pid) == owner.born
    note(f"The run was last held by {owner}. Listening for {SILENCE_SECONDS:.0f} s whether that is alive.")
    end = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(1.0)
        now = _owner(place)
        if now is None or now.ended:
            return None
        if now.beat != owner.beat:
            return True
    return False


def _leases(run: Location) -> list[Location]:
    return [place for place, info in run.list() if info.type == fs.FileType.File and _NAME.fullmatch(place.name)]


def _newest(run: Location) -> Location | None:
    return max(_leases(run), key=_number, default=None)


def _number(place: Location | None) -> int:
    found = _NAME.fullmatch(place.name) if place else None
    return int(found.group(1)) if found else 0


def _owner(place: Location) -> Owner | None:
    """The driver that wrote a lease; None if the file is gone or cannot be read."""
    try:
        return _OWNER.validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


_OWNER = TypeAdapter(Owner)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{os.uname().sysname}"


def _born(pid: int) -> str:
    """The start time of a process; empty if there is none, if it has died, or where it cannot be known."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if facts[0] == "Z" else facts[19]
