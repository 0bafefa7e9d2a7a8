from __future__ import annotations

import json
from pathlib import Path

import pytest

from lungseg_ray.run import event_log
from lungseg_ray.run.event_log import EVENTS, EventLog
from lungseg_ray.storage import Location, locate


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(locate(str(tmp_path)))


def test_lines_are_added_in_order(log: EventLog) -> None:
    assert log.read() == []
    log.append("started", "Training from the start.", step=0)
    log.append("workers_lost", "Lost worker 1.", step=12)
    log.append("finished", "Finished after 3 epochs.")
    found = log.read()
    assert [(one["event"], one["step"], one["text"]) for one in found] == [
        ("started", 0, "Training from the start."),
        ("workers_lost", 12, "Lost worker 1."),
        ("finished", None, "Finished after 3 epochs."),
    ]
    assert all(len(one["time"]) == len("2026-01-31T12:00:00Z") for one in found)


def test_each_line_is_json_whatever_the_text(log: EventLog) -> None:
    log.append("storage", 'two\nlines and "quotes"')
    (line,) = (log.run / EVENTS).read_text().splitlines()
    assert json.loads(line)["text"] == 'two\nlines and "quotes"'


def test_lines_that_cannot_be_read_are_left_out(log: EventLog) -> None:
    good = json.dumps({"time": "t", "event": "started", "step": 1, "text": "x"})
    (log.run / EVENTS).write_text(f"{good}\nno json\n[]\n{{}}\n{good}\n")
    assert len(log.read()) == 2


def test_the_oldest_lines_are_dropped(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_MOST_EVENTS", 3)
    for number in range(5):
        log.append("storage", str(number))
    assert [one["text"] for one in log.read()] == ["2", "3", "4"]


def test_a_disk_without_room_costs_the_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Location, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Location, "write_text", full)
    said: list[str] = []
    EventLog(locate(str(tmp_path)), said.append).append("started", "x")
    assert "No space left on device" in said[0]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b'{"time": "t", "event": "e", "step": Infinity, "text": "x"}', b"[" * 100_000, b"[]", b"1"]
)
def test_lines_that_others_have_written(line: bytes, tmp_path: Path) -> None:
    log = EventLog(locate(str(tmp_path)), lambda text: None)
    log.append("started", "first")
    (tmp_path / "events.jsonl").write_bytes((tmp_path / "events.jsonl").read_bytes() + line + b"\n")
    log.append("stopped", "last")
    assert [one["text"] for one in log.read()] == ["first", "last"]
