"""The process that hands what `lungseg_ray.run.tracking` sends to MLflow and to Weights & Biases."""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from lungseg_ray.config import TrackSettings
from lungseg_ray.run.tensorboard import by_tag
from lungseg_ray.run.tracking import Message, RunEnds, RunHasEpoch, RunHasResult, RunStarts
from lungseg_ray.storage import locate
from lungseg_ray.text import printable

ATTEMPTS = 3
"""How often something is offered to a service that answers otherwise."""
_LONGEST_PAUSE = 30.0
_FIRST_PAUSE = 1.0
_PARAMETERS_PER_CALL, _LONGEST_PARAMETER = 100, 6000
"""Limits of MLflow's interface (https://mlflow.org/docs/latest/rest-api.html, "Log Batch")."""
_PROJECT = "lungseg-ray"


class Service(Protocol):
    """A service that keeps runs side by side."""

    def starts(self, message: RunStarts) -> str:
        """Opens a run, or opens it again, and returns where a person can see it."""

    def epoch(self, message: RunHasEpoch) -> None:
        """Takes the figures of an epoch."""

    def result(self, message: RunHasResult) -> None:
        """Takes final figures, pictures and the model."""

    def ends(self, message: RunEnds) -> None:
        """Closes a run."""

    def answers(self) -> bool:
        """Whether the service can be used at present; it may also raise an exception where it cannot."""


class Mlflow:
    """An MLflow server. Its experiment is `MLFLOW_EXPERIMENT_NAME`, or that of this project.

    Args:
        address: The tracking address of MLflow.
    """

    def __init__(self, address: str) -> None:
        # By default, a request to a server that does not answer is repeated for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=address)
        self._address = address
        self._runs: dict[str, str] = {}

    def starts(self, message: RunStarts) -> str:
        """Opens a run, or opens it again, and returns where a person can see it."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        key = _key(message.run)
        found = self._client.search_runs([experiment], f"tags.lungseg_run = '{key}'", max_results=1)
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags = {"lungseg_run": key, "folder": message.run, **({"sweep": message.group} if message.group else {})}
            run = self._client.create_run(experiment, run_name=message.name, tags=tags).info.run_id
        # A start that was interrupted may have left a run without them.
        if not found or not found[0].data.params:
            pairs = [
                self._entities.Param(name, value[:_LONGEST_PARAMETER]) for name, value in message.parameters.items()
            ]
            for first in range(0, len(pairs), _PARAMETERS_PER_CALL):
                self._client.log_batch(run, params=pairs[first : first + _PARAMETERS_PER_CALL])
        self._runs[message.run] = run
        web = self._address.startswith("http")
        return f"{self._address}/#/experiments/{experiment}/runs/{run}" if web else f"run {run} in {self._address}"

    def epoch(self, message: RunHasEpoch) -> None:
        """Takes the figures of an epoch."""
        self._log(by_tag(message.row), message.run, int(message.row["epoch"]))

    def result(self, message: RunHasResult) -> None:
        """Takes final figures, pictures and the model."""
        self._log(message.figures, message.run, 0)
        # A large model may not arrive before the job ends, which must not leave a run that seems to go on.
        self._client.set_terminated(self._runs[message.run], "FINISHED")
        with tempfile.TemporaryDirectory(prefix="lungseg-track-") as name:
            for path in _fetched(message, Path(name)):
                self._client.log_artifact(self._runs[message.run], str(path), path.parent.name)

    def ends(self, message: RunEnds) -> None:
        """Closes a run."""
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[message.status]
        self._client.set_terminated(self._runs[message.run], status)

    def answers(self) -> bool:
        """Whether the service can be used at present; it may also raise an exception where it cannot."""
        self._client.search_experiments(max_results=1)
        return True

    def _log(self, figures: dict[str, float], run: str, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._runs[run], metrics=metrics)


class Wandb:
    """A project of Weights & Biases. Key, server and mode are those of its own variables, such as `WANDB_MODE`.

    Args:
        project: The project, after the name of a team and a slash if there is one.
    """

    def __init__(self, project: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb = wandb
        entity, _, self._project = project.rpartition("/")
        self._entity = entity or None
        self._runs: dict[str, Any] = {}

    def starts(self, message: RunStarts) -> str:
        """Opens a run, or opens it again, and returns where a person can see it."""
        run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            id=_key(message.run),
            name=message.name,
            group=message.group or None,
            config={**message.parameters, "folder": message.run},
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        # A run that is resumed repeats epochs, which steps of Weights & Biases do not allow.
        run.define_metric("*", step_metric="epoch")
        self._runs[message.run] = run
        return run.url or f"{run.dir} (offline; `wandb sync` sends it)"

    def epoch(self, message: RunHasEpoch) -> None:
        """Takes the figures of an epoch."""
        self._runs[message.run].log({**by_tag(message.row), "epoch": int(message.row["epoch"])})

    def result(self, message: RunHasResult) -> None:
        """Takes final figures, pictures and the model."""
        run = self._runs[message.run]
        run.summary.update(message.figures)
        with tempfile.TemporaryDirectory(prefix="lungseg-track-") as name:
            model = self._wandb.Artifact(f"model-{_key(message.run)}", type="model")
            for path in _fetched(message, Path(name)):
                if path.parent.name == "model":
                    model.add_file(str(path))
                else:
                    run.log({path.stem: self._wandb.Image(str(path))})
            run.log_artifact(model)

    def ends(self, message: RunEnds) -> None:
        """Closes a run."""
        self._runs.pop(message.run).finish(exit_code=0 if message.status == "finished" else 1)

    def answers(self) -> bool:
        """Whether the service can be used at present. Its library keeps what it cannot send yet."""
        return True


def _key(run: str) -> str:
    """A name of a run that is the same when it is resumed."""
    return hashlib.sha256(run.encode()).hexdigest()[:16]


def _fetched(message: RunHasResult, folder: Path) -> list[Path]:
    """Copies pictures and the files of the model to `pictures` and `model` in a folder."""
    model = [place for place, _ in locate(message.model).list()]
    found = []
    for part, places in (("pictures", [locate(uri) for uri in message.pictures]), ("model", model)):
        (folder / part).mkdir()
        for place in places:
            path = folder / part / place.name
            path.write_bytes(place.read_bytes())
            found.append(path)
    return found


class Sender:
    """Hands messages to a service in a thread of its own, in their order, and tells what does not work.

    Args:
        setting: The setting that names the service.
        connect: Returns the service.
        tell: Called with what the user should know.
    """

    def __init__(self, setting: str, connect: Callable[[], Service], tell: Callable[[str], None]) -> None:
        self._setting, self._connect, self._tell = setting, connect, tell
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._service: Service | None = None
        self._thread = threading.Thread(target=self._work, name=setting, daemon=True)
        self._thread.start()

    def put(self, message: Message | None) -> None:
        """Adds a message.

        Args:
            message: The message; None after the last.
        """
        self._messages.put(message)

    def join(self, seconds: float) -> None:
        """Waits until the service has all messages.

        Args:
            seconds: The longest time to wait.
        """
        self._thread.join(seconds)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            failures = 0
            while not self._taken(message, first=not failures):
                failures += 1
                if failures >= ATTEMPTS and self._answers():
                    self._tell(f"{self._setting}: left out what it does not take ({message.kind} of {message.run}).")
                    break
                time.sleep(min(_FIRST_PAUSE * 2 ** min(failures, 9), _LONGEST_PAUSE))

    def _answers(self) -> bool:
        try:
            return self._service is not None and self._service.answers()
        except Exception:
            return False

    def _taken(self, message: Message, *, first: bool) -> bool:
        try:
            self._service = self._service or self._connect()
            match message:
                case RunStarts():
                    where = self._service.starts(message)
                    self._tell(f"{self._setting}: {where}")
                case RunHasEpoch():
                    self._service.epoch(message)
                case RunHasResult():
                    self._service.result(message)
                case RunEnds():
                    self._service.ends(message)
        except Exception as error:
            # Libraries of services raise what they like; a run must not end with any of it.
            if first:
                reason = " ".join(str(error).split())[:300]
                self._tell(
                    f"{self._setting}: does not take what it is sent ({type(error).__name__}: {reason}). Trying again; "
                    f"training goes on, and its figures are in {message.run}."
                )
            return False
        return True


def main() -> None:
    """Hands each line of the standard input to the services.

    The arguments are the settings of the services, and the seconds that they have after the last line.
    """
    os.nice(10)
    terminal = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    # What libraries print is not for the user of a training job.
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    settings = TrackSettings.model_validate_json(sys.argv[1])

    def tell(text: str) -> None:
        # A terminal that is closed must not end the thread that hands figures on.
        with suppress(OSError):
            print(printable(text), file=terminal, flush=True)

    senders = []
    if settings.mlflow:
        senders.append(Sender("track.mlflow", lambda: Mlflow(settings.mlflow or ""), tell))
    if settings.wandb:
        senders.append(Sender("track.wandb", lambda: Wandb(settings.wandb or ""), tell))
    adapter: TypeAdapter[Message] = TypeAdapter(Message)
    running: set[str] = set()

    def put(message: Message) -> None:
        (running.discard if isinstance(message, RunEnds) else running.add)(message.run)
        for sender in senders:
            sender.put(message)

    for line in sys.stdin:
        put(adapter.validate_json(line))
    # A job that is killed cannot say that its runs end.
    for run in sorted(running):
        put(RunEnds(run=run, status="failed"))
    end = time.monotonic() + float(sys.argv[2])
    for sender in senders:
        sender.put(None)
    for sender in senders:
        sender.join(max(end - time.monotonic(), 0))
    # What the libraries do at the end of an interpreter may wait for their services without an end.
    os._exit(0 if time.monotonic() < end else 1)


if __name__ == "__main__":
    main()
