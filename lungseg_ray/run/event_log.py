"""The event log of a run: starts, losses of workers, retries, skipped steps, takeovers, stops; with time and step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

from lungseg_ray.storage import Location

EVENTS = "events.jsonl"
_MOST_EVENTS = 10_000
"""Events that are kept; of more, the oldest are dropped."""


class LoggedEvent(TypedDict):
    """A line of the event log.

    Attributes:
        time: Time in UTC, in ISO 8601 with seconds.
        event: The kind of event, such as "started" or "workers_lost".
        step: The optimiser step that the event belongs to; None where it belongs to none.
        text: What happened, in words.
    """

    time: str
    event: str
    step: int | None
    text: str


@dataclass(frozen=True)
class EventLog:
    """The file `events.jsonl` in the folder of a run. It is written by the driver that holds the run's lease.

    A bucket cannot append to a file, so that the whole file is written at each event; there are few.

    Attributes:
        run: The folder of the run.
        on_error: Called with a message where the file cannot be written. The run goes on without the line.
    """

    run: Location
    on_error: Callable[[str], None] = lambda text: None

    def append(self, event: str, text: str, *, step: int | None = None) -> None:
        """Adds a line.

        Args:
            event: The kind of event, a word.
            text: What happened, in words.
            step: The optimiser step that the event belongs to.
        """
        line = LoggedEvent(
            time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            event=event,
            step=step,
            text=text,
        )
        try:
            lines = [*self._lines()[1 - _MOST_EVENTS :], json.dumps(line)]
            (self.run / EVENTS).write_text("\n".join(lines) + "\n")
        except OSError as error:
            self.on_error(f"{self.run / EVENTS} could not be written: {error}")

    def read(self) -> list[LoggedEvent]:
        """Returns all lines, the oldest first; lines that cannot be read are left out."""
        found: list[LoggedEvent] = []
        for line in self._lines():
            try:
                content = json.loads(line)
                step = content["step"]
                found.append(
                    LoggedEvent(
                        time=str(content["time"]),
                        event=str(content["event"]),
                        step=None if step is None else int(step),
                        text=str(content["text"]),
                    )
                )
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                continue
        return found

    def _lines(self) -> list[str]:
        try:
            return (self.run / EVENTS).read_bytes().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
