"""Hands settings, figures, pictures and models of runs to MLflow and to Weights & Biases.

The services are spoken to by a process of its own, `lungseg_ray.run.trackers`: whatever they do, training neither waits
for them nor shares an interpreter with their libraries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lungseg_ray.config import Settings, TrackSettings, leaves, value_at
from lungseg_ray.errors import StoppedError, UserError
from lungseg_ray.progress import say
from lungseg_ray.storage import Location

LAST_SECONDS = 30.0
"""Seconds for which the end of a job waits for the services to take what is left."""

PACKAGE = str(Path(__file__).parents[2])
"""The folder that holds this package, which need not be installed."""
STOPPED_SECONDS = 2.0
"""Seconds for which a job that is stopped waits for them."""

Status = Literal["finished", "failed", "stopped"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str


class RunStarts(_Message):
    """A run starts or is resumed.

    Attributes:
        run: The address of the folder of the run.
        name: Its name.
        group: The sweep that it belongs to; empty if none.
        parameters: Its settings by key.
    """

    kind: Literal["starts"] = "starts"
    name: str
    group: str = ""
    parameters: dict[str, str]


class RunHasEpoch(_Message):
    """A run has finished an epoch.

    Attributes:
        run: The address of the folder of the run.
        row: The epoch's row of the history.
    """

    kind: Literal["epoch"] = "epoch"
    row: dict[str, float]


class RunHasResult(_Message):
    """A run is trained and measured.

    Attributes:
        run: The address of the folder of the run.
        figures: Its final figures by name.
        pictures: The addresses of pictures.
        model: The address of the folder of its best model.
    """

    kind: Literal["result"] = "result"
    figures: dict[str, float]
    pictures: list[str]
    model: str


class RunEnds(_Message):
    """A run is left.

    Attributes:
        run: The address of the folder of the run.
        status: How it ended.
    """

    kind: Literal["ends"] = "ends"
    status: Status


Message = Annotated[RunStarts | RunHasEpoch | RunHasResult | RunEnds, Field(discriminator="kind")]


class Tracking:
    """The way to the services that the settings name; without any, its methods do nothing.

    Args:
        process: The process that speaks to the services; None without any.
    """

    def __init__(self, process: subprocess.Popen[str] | None) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="tracking", daemon=True)
        if process:
            self._writer.start()

    def start(self, run: Location, settings: Settings, *, group: str = "") -> None:
        """Tells that a run starts or is resumed.

        Args:
            run: The folder of the run.
            settings: Its settings.
            group: The sweep that it belongs to; empty if none.
        """
        tree = settings.model_dump(mode="json")
        parameters = {key: str(value_at(tree, key)) for key in leaves(type(settings))}
        self._send(RunStarts(run=run.uri, name=run.name, group=group, parameters=parameters))

    def epoch(self, run: Location, row: dict[str, float]) -> None:
        """Tells the figures of an epoch.

        Args:
            run: The folder of the run.
            row: The epoch's row of the history.
        """
        self._send(RunHasEpoch(run=run.uri, row=row))

    def result(self, run: Location, figures: Mapping[str, float], pictures: list[Location], model: Location) -> None:
        """Tells the result of a run.

        Args:
            run: The folder of the run.
            figures: Its final figures by name.
            pictures: Pictures.
            model: The folder of its best model.
        """
        uris = [picture.uri for picture in pictures]
        self._send(RunHasResult(run=run.uri, figures=dict(figures), pictures=uris, model=model.uri))

    def end(self, run: Location, status: Status) -> None:
        """Tells that a run is left.

        Args:
            run: The folder of the run.
            status: How it ended.
        """
        self._send(RunEnds(run=run.uri, status=status))

    def _send(self, message: _Message) -> None:
        if self._process:
            # Plain JSON, since pydantic would write None for a figure that is not a number.
            self._lines.put(json.dumps(message.model_dump()) + "\n")

    def _write(self) -> None:
        """Writes to the process, which may be suspended or may have ended."""
        process = self._process
        if not process or not process.stdin:
            return
        try:
            while (line := self._lines.get()) is not None:
                process.stdin.write(line)
                process.stdin.flush()
            process.stdin.close()
        except OSError:
            say("The process that hands figures to track.mlflow and track.wandb has ended; the run goes on without it.")

    def close(self) -> None:
        """Tells the process that nothing follows."""
        self._lines.put(None)


def check_services(settings: TrackSettings) -> None:
    """Checks that the libraries of the services that the settings name are installed.

    Args:
        settings: The services.

    Raises:
        UserError: If one is not.
    """
    for name, value in settings.model_dump().items():
        if value and importlib.util.find_spec(name) is None:
            raise UserError(
                f"track.{name}: the package {name} is not installed. pip install -c constraints.txt -e '.[track]'."
            )


@contextmanager
def tracking(settings: TrackSettings) -> Iterator[Tracking]:
    """Starts the process that speaks to the services, and ends it after the block.

    Args:
        settings: The services.

    Yields:
        The way to them.

    Raises:
        StoppedError: If the block raises it.
        KeyboardInterrupt: If the block raises it.
    """
    if not any(settings.model_dump().values()):
        yield Tracking(None)
        return
    # In a session of its own, a Ctrl-C reaches only the job, whose last figures it still takes.
    process = subprocess.Popen(
        # Without -P, modules in the working directory of the user would be imported in place of libraries.
        [sys.executable, "-P", "-m", "lungseg_ray.run.trackers", settings.model_dump_json(), str(LAST_SECONDS)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGE, os.environ.get("PYTHONPATH")]))},
        text=True,
        start_new_session=True,
    )
    found, stopped = Tracking(process), False
    try:
        yield found
    except (StoppedError, KeyboardInterrupt):
        stopped = True
        raise
    finally:
        found.close()
        # Who stops a job does not wait for a service. The process takes what is left, and ends by itself.
        _wait(process, STOPPED_SECONDS if stopped else LAST_SECONDS, finished=not stopped)


@contextmanager
def tracked(run: Location, settings: Settings) -> Iterator[Tracking]:
    """Tracks one run for the duration of the block, and tells how it ended.

    Args:
        run: The folder of the run.
        settings: Its settings, which name the services.

    Yields:
        The way to the services.

    Raises:
        StoppedError: If the block raises it.
        KeyboardInterrupt: If the block raises it.
    """
    with tracking(settings.track) as found:
        found.start(run, settings)
        status: Status = "failed"
        try:
            yield found
            status = "finished"
        except (StoppedError, KeyboardInterrupt):
            status = "stopped"
            raise
        finally:
            found.end(run, status)


def _wait(process: subprocess.Popen[str], seconds: float, *, finished: bool = True) -> None:
    """Waits for the end of the process, which comes by itself after `LAST_SECONDS`."""
    try:
        late = process.wait(seconds + 5 if finished else seconds) != 0
    except subprocess.TimeoutExpired:
        late = True
        if finished:
            process.kill()
            process.wait()
    if late and finished:
        say(
            f"track.mlflow or track.wandb has not taken everything in {seconds:.0f} s after the end. It is in the "
            "folder of the run."
        )
