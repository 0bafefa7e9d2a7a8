"""The right to write a run: one driver has it at a time, on a disk or in a bucket.

A lease is a numbered file in the run's folder. The highest number counts, and a file can be created only once
(`Location.create`), so that of any number of drivers one alone gets the next. Its owner writes it again and again, and
others see its heart beat; no clocks are compared. An owner that finds a higher number has lost the run.
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

from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.storage import Location

_NAME = re.compile(r"lease-(\d{6})\.json")
BEAT_SECONDS = 10.0
SILENCE_SECONDS = 35.0
"""An owner on another machine that is not heard for so long is taken for dead."""


@dataclass(frozen=True)
class Owner:
    """Who holds a run.

    Attributes:
        host: name of the machine, for people.
        machine: identifies its boot and its process namespace.
        pid: of the driver.
        born: when that process started, in ticks since the boot; tells it from a later one of the same number.
        since: when it took the run, for people.
        beat: grows while it lives.
    """

    host: str
    machine: str
    pid: int
    born: str
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _born(pid), time.strftime("%Y-%m-%d %H:%M:%S %Z"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class LeaseToken:
    """What shows, in any process, that a driver holds a run.

    Attributes:
        run: its folder.
        owner: the driver.
    """

    run: Location
    owner: Owner

    def check(self) -> None:
        """Looks whether the owner still holds the run.

        Raises:
            JobFailedError: if another driver has taken the run over.
            OSError: if the storage does not say.
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
        ticket: for those who write in the driver's name.
    """

    def __init__(self, ticket: LeaseToken, place: Location) -> None:
        self.ticket = ticket
        self._place = place
        self._beats = 0
        self._lost: JobFailedError | None = None

    def check(self) -> None:
        """Does nothing while the lease is held.

        Raises:
            JobFailedError: if another driver has taken the run over.
        """
        if self._lost:
            raise self._lost

    def beat(self) -> None:
        """Shows that the owner lives, and looks whether another has taken over."""
        try:
            self.ticket.check()
        except JobFailedError as error:
            self._lost = error
            return
        self._beats += 1
        self._place.write_text(json.dumps(asdict(replace(self.ticket.owner, beat=self._beats))))

    def give_back(self) -> None:
        """Ends the lease, if it is still this driver's."""
        try:
            self.ticket.check()
        except JobFailedError:
            return
        self._place.delete()


@contextmanager
def acquire(run: Location, note: Callable[[str], None]) -> Iterator[Lease]:
    """The lease of a run, for the time of the block.

    Args:
        run: its folder.
        note: told of a takeover, and of what cannot be relied on.

    Raises:
        UserError: if another driver holds it and is alive.
    """
    owner = Owner.here()
    if not run.honours_create():
        note(f"{run}: the storage does not honour conditional writes; two drivers that start at once go unnoticed.")
    place = _acquire(run, owner, note)
    lease = Lease(LeaseToken(run, owner), place)
    end = threading.Event()

    def work() -> None:
        while not end.wait(BEAT_SECONDS):
            try:
                lease.beat()
            except OSError:
                # Whoever takes over meanwhile is seen as soon as the storage answers again.
                continue

    heart = threading.Thread(target=work, name="lease", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        end.set()
        heart.join()
        try:
            lease.give_back()
        except OSError as error:
            note(f"The lease {place} could not be given back ({error}); it lapses by itself.")


def _acquire(run: Location, owner: Owner, note: Callable[[str], None]) -> Location:
    while True:
        newest = _newest(run)
        other = _owner(newest) if newest else None
        if newest and other and _alive(newest, other, note):
            raise UserError(
                f"{run}: the run is in the hands of {other}. Wait until it ends, stop it, or use another runs.name."
            )
        place = run / f"lease-{_number(newest) + 1:06d}.json"
        if place.create(json.dumps(asdict(owner)).encode()):
            if newest:
                note(f"Taking the run over from {other or 'a driver'} that is no more.")
            for old in _leases(run):
                if _number(old) < _number(place):
                    old.delete()
            return place


def _alive(place: Location, owner: Owner, note: Callable[[str], None]) -> bool:
    if owner.machine == _machine() and owner.born:
        return _born(owner.pid) == owner.born
    note(f"The run was last in the hands of {owner}. Listening for {SILENCE_SECONDS:.0f} s whether that is alive.")
    end = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(1.0)
        now = _owner(place)
        if now is None:
            return False
        if now.beat != owner.beat:
            return True
    return False


def _leases(run: Location) -> list[Location]:
    return [place for place, _ in run.list() if _NAME.fullmatch(place.name)]


def _newest(run: Location) -> Location | None:
    return max(_leases(run), key=_number, default=None)


def _number(place: Location | None) -> int:
    found = _NAME.fullmatch(place.name) if place else None
    return int(found.group(1)) if found else 0


def _owner(place: Location) -> Owner | None:
    """Who wrote a lease; None if it is gone or cannot be read."""
    try:
        return Owner(**json.loads(place.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{os.uname().sysname}"


def _born(pid: int) -> str:
    """When a process started; empty if there is none, if it has died, or where this cannot be known."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if facts[0] == "Z" else facts[19]
