"""Writes the events of a run that are worth keeping into its event log."""

from __future__ import annotations

from lungseg_ray.run.event_log import EventLog
from lungseg_ray.training.events import Event, Note, Started


def record(log: EventLog, event: Event) -> None:
    """Adds an event to the log of its run; steps, epochs and plain information are left out.

    The end of a run is recorded by its driver, which also knows the reasons that no worker can report.

    Args:
        log: The event log of the run.
        event: The event.
    """
    match event:
        case Started():
            where = f"from step {event.step}" if event.step else "from the start"
            text = f"Training {where} on {event.workers} worker(s): {event.device}, {event.precision}."
            log.append("resumed" if event.step else "started", text, step=event.step)
        case Note(kind="info"):
            pass
        case Note():
            log.append(event.kind, event.text, step=event.step)
        case _:
            pass
