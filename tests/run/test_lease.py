from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.run import lease
from lungseg_ray.run.lease import Owner, acquire
from lungseg_ray.storage import Location, locate

Note = Callable[[str], None]


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "run"))


@pytest.fixture
def said() -> list[str]:
    return []


def files(run: Location) -> list[str]:
    return [place.name for place, _ in run.list()]


def leave(run: Location, owner: Owner, *, number: int = 1) -> Location:
    """A lease that its owner has not given back."""
    place = run / f"lease-{number:06d}.json"
    place.write_text(json.dumps(asdict(owner)))
    return place


def process_that_ended() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_held_and_given_back(run: Location, said: list[str]) -> None:
    with acquire(run, said.append) as mine:
        assert files(run) == ["lease-000001.json"]
        mine.beat()
        mine.check()
        assert json.loads((run / "lease-000001.json").read_text())["beat"] == 1
    assert files(run) == ["lease-000001.json"]
    with acquire(run, said.append):
        assert files(run) == ["lease-000002.json"]
    assert said == []


def test_the_second_is_refused(run: Location, said: list[str]) -> None:
    with acquire(run, said.append) as mine:
        with pytest.raises(UserError, match=rf"held by process {os.getpid()} on .*, since") as error:
            acquire(run, said.append).__enter__()
        assert "another folder" in str(error.value)
        mine.check()
    with acquire(run, said.append):
        pass


def test_of_many_at_once_one_gets_it(run: Location, said: list[str]) -> None:
    got: list[int] = []
    refused: list[int] = []
    barrier = threading.Barrier(8)
    done = threading.Barrier(8)

    def work(number: int) -> None:
        with ExitStack() as stack:
            barrier.wait()
            try:
                stack.enter_context(acquire(run, said.append))
                got.append(number)
            except UserError:
                refused.append(number)
            done.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_a_dead_owner_on_this_machine_is_followed_at_once(run: Location, said: list[str]) -> None:
    leave(run, replace(Owner.here(), pid=process_that_ended(), host="here"), number=3)
    with acquire(run, said.append):
        assert files(run) == ["lease-000004.json"]
    assert len(said) == 1
    assert "Taking the run over from process" in said[0]


def test_a_later_process_of_the_same_number_is_not_the_owner(run: Location, said: list[str]) -> None:
    leave(run, replace(Owner.here(), born="1"))
    with acquire(run, said.append):
        assert files(run) == ["lease-000002.json"]


class TestAnotherMachine:
    OWNER = replace(Owner.here(), machine="elsewhere/1", host="elsewhere")

    def test_silent(self, run: Location, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "SILENCE_SECONDS", 1.5)
        leave(run, self.OWNER)
        with acquire(run, said.append):
            assert files(run) == ["lease-000002.json"]
        assert "Listening for" in said[0]
        assert "Taking the run over from process" in said[1]

    def test_alive(self, run: Location, said: list[str]) -> None:
        place = leave(run, self.OWNER)
        timer = threading.Timer(0.5, lambda: place.write_text(json.dumps(asdict(replace(self.OWNER, beat=1)))))
        timer.start()
        with pytest.raises(UserError, match=r"held by process .* on elsewhere"):
            acquire(run, said.append).__enter__()
        timer.join()
        assert files(run) == ["lease-000001.json"]


def test_an_owner_that_was_not_heard_finds_that_it_has_lost(run: Location, said: list[str]) -> None:
    with acquire(run, said.append) as mine:
        leave(run, replace(Owner.here(), host="elsewhere"), number=2)
        mine.beat()
        with pytest.raises(JobFailedError, match=r"taken over by process .* on elsewhere"):
            mine.check()
    # What the other holds is left alone.
    assert "lease-000002.json" in files(run)


def test_a_number_that_comes_again_is_another_lease(run: Location, said: list[str]) -> None:
    # Another driver took the run over, gave it back, and one more has number 1 again.
    with acquire(run, said.append) as mine:
        leave(run, replace(Owner.here(), host="elsewhere", born="2"), number=1)
        mine.beat()
        with pytest.raises(JobFailedError, match=r"taken over by process .* on elsewhere"):
            mine.check()
    assert files(run) == ["lease-000001.json"]


def test_a_lease_that_cannot_be_read_is_followed(run: Location, said: list[str]) -> None:
    (run / "lease-000007.json").write_text("{")
    with acquire(run, said.append):
        assert files(run) == ["lease-000008.json"]
    assert "Taking the run over from a driver" in said[0]


def test_a_forged_number(run: Location, said: list[str]) -> None:
    leave(run, replace(Owner.here(), pid=process_that_ended()), number=999_999)
    with acquire(run, said.append) as mine:
        assert files(run) == ["lease-1000000.json"]
        mine.beat()
        mine.check()
    with acquire(run, said.append):
        assert files(run) == ["lease-1000001.json"]
    place = leave(run, replace(Owner.here(), pid=process_that_ended()), number=10**17)
    with (
        pytest.raises(UserError, match=rf"{place}: no driver writes a lease of this number"),
        acquire(run, said.append),
    ):
        pass


@pytest.mark.parametrize(
    "content", ["[]", "1", "null", '{"pid": "../1"}', '{"host": 1, "machine": [], "pid": {}, "born": "", "since": ""}']
)
def test_forged_contents(content: str, run: Location, said: list[str]) -> None:
    (run / "lease-000003.json").write_text(content)
    (run / "lease-000009.json").make_dir()
    with acquire(run, said.append):
        assert "lease-000004.json" in files(run)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_the_place_of_a_lease(kind: str, run: Location, said: list[str], tmp_path: Path) -> None:
    place = Path(run.path) / "lease-000001.json"
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"{place}: expected a lease, found something else"), acquire(run, said.append):
        pass


_RACER = """
import sys, time
from lungseg_ray.errors import UserError
from lungseg_ray.run.lease import acquire
from lungseg_ray.storage import locate
run, log, turns = locate(sys.argv[1]), sys.argv[2], int(sys.argv[3])
done = 0
while done < turns:
    try:
        with acquire(run, lambda text: None) as lease:
            start = time.monotonic_ns()
            lease.token.check()
            end = time.monotonic_ns()
        done += 1
        with open(log, "a") as file:
            file.write(f"{start} {end}\\n")
    except UserError:
        pass
"""


def test_handovers_that_several_drivers_race_for(run: Location, tmp_path: Path) -> None:
    """No two are inside at a time, however closely one follows another."""
    racers = [
        subprocess.Popen([sys.executable, "-c", _RACER, str(run), str(tmp_path / f"log{number}"), "40"])
        for number in range(3)
    ]
    assert [racer.wait(120) for racer in racers] == [0, 0, 0]
    lines = [line.split() for number in range(3) for line in (tmp_path / f"log{number}").read_text().splitlines()]
    inside = sorted((int(start), int(end)) for start, end in lines)
    assert len(inside) == 120
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(inside))
