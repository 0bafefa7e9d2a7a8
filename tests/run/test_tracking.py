"""Runs at MLflow, with a real server and its SQLite store, and at Weights & Biases, offline."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from pydantic import ValidationError

from lungseg_ray.config import Settings, TrackSettings
from lungseg_ray.errors import StoppedError, UserError
from lungseg_ray.run import tracking
from lungseg_ray.run.tracking import tracked
from lungseg_ray.storage import Location, locate
from tests.processes import wait_until

ROW = {"epoch": 1.0, "step": 4.0, "loss": 0.5, "val_iou": 0.8, "images_per_second": 12.0}
MODEL = ("model.safetensors", "model.json")


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    store = ("--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files"))
    off = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, "--port", port, "--workers", "1"],
            env=os.environ | off,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            with urlopen(f"{address}/health", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    try:
        assert wait_until(answers, seconds=90)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def run(tmp_path: Path) -> Location:
    place = locate(str(tmp_path / "it's a run"))
    (place / "curves.png").write_bytes(_picture())
    for name in MODEL:
        (place / "best" / name).write_bytes(name.encode())
    return place


def _picture() -> bytes:
    import numpy as np

    from lungseg_ray.imaging import png

    return png(np.zeros((8, 8), np.uint8))


def settings_for(**services: str) -> Settings:
    return Settings.model_validate({"track": services, "train": {"epochs": 2}})


def test_mlflow(run: Location, mlflow_server: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(mlflow=mlflow_server)
    with suppress(ZeroDivisionError), tracked(run, settings) as services:
        services.epoch(run, ROW)
        raise ZeroDivisionError
    assert f"track.mlflow: {mlflow_server}/#/experiments/" in capfd.readouterr().err

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_server)
    experiment = client.get_experiment_by_name("lungseg-ray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FAILED", run.name)
    assert found.data.params["train.epochs"] == "2"
    assert found.data.params["track.mlflow"] == mlflow_server
    assert found.data.metrics == {"train/loss": 0.5, "val/iou": 0.8, "time/images_per_second": 12.0}

    # The run is resumed, and becomes longer.
    with tracked(run, settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 3})})) as again:
        again.epoch(run, {**ROW, "epoch": 2.0, "val_iou": 0.9, "val_dice_positives": math.nan})
        again.result(run, {"test/dice": 0.95}, [run / "curves.png"], run / "best")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "val/iou")
    assert [(point.step, point.value) for point in history] == [(1, 0.8), (2, 0.9)]
    assert found.data.metrics["test/dice"] == 0.95
    assert math.isnan(found.data.metrics["val/dice_positives"])
    files = {file.path for part in ("pictures", "model") for file in client.list_artifacts(found.info.run_id, part)}
    assert files == {"pictures/curves.png", *(f"model/{name}" for name in MODEL)}


def test_a_killed_job_leaves_no_run_that_seems_to_run(run: Location, mlflow_server: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from tests.run.test_tracking import *\n"
        "place = locate(sys.argv[1])\n"
        "with tracked(place, settings_for(mlflow=sys.argv[2])) as services:\n"
        "    services.epoch(place, ROW)\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = subprocess.run([sys.executable, "-c", code, run.uri, mlflow_server], check=False)
    assert job.returncode == -signal.SIGKILL

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_server)

    def ended() -> bool:
        known = client.get_experiment_by_name("lungseg-ray")
        found = client.search_runs([known.experiment_id], f'tags.folder = "{run.uri}"') if known else []
        return [(one.info.status, one.data.metrics.get("val/iou")) for one in found] == [("FAILED", 0.8)]

    assert wait_until(ended, seconds=60)


def test_wandb_offline(run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with tracked(run, settings_for(wandb="team/lungs")) as services:
        services.epoch(run, ROW)
        services.result(run, {"test/dice": 0.95}, [run / "curves.png"], run / "best")
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(_records(log))
    kinds = [record.WhichOneof("record_type") for record in records]
    assert kinds.count("exit") == 1
    rows = [
        {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert any(row.get("val/iou") == "0.8" and row.get("epoch") == "1" for row in rows)
    assert any(key.startswith("curves") for row in rows for key in row)
    assert {record.run.project for record in records if record.WhichOneof("record_type") == "run"} == {"lungs"}
    (artifact,) = (record.artifact for record in records if record.WhichOneof("record_type") == "artifact")
    assert {content.path for content in artifact.manifest.contents} == set(MODEL)


def _records(log: Path) -> Iterator[Any]:
    """The records of a file in the log format of LevelDB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, at, content = log.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        content += data[at + 7 : at + 7 + length]
        at += 7 + length
        # A record lies in one piece (1), or in several, of which 4 is the last.
        if kind in (1, 4):
            yield Record.FromString(content)
            content = b""


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_a_service_that_does_not_answer_holds_nothing_up(
    run: Location, answer: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "LAST_SECONDS", 5.0)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if answer == "silent":
            one.listen()
        address = f"http://127.0.0.1:{one.getsockname()[1]}"
        slowest = 0.0
        with tracked(run, settings_for(mlflow=address)) as services:
            # More than a pipe takes.
            for epoch in range(1000):
                start = time.monotonic()
                services.epoch(run, {**ROW, "epoch": float(epoch)})
                slowest = max(slowest, time.monotonic() - start)
        assert slowest < 2
    text = capfd.readouterr().err
    assert "has not taken everything in 5 s after the end" in text
    if answer == "refused":
        assert "track.mlflow: does not take what it is sent" in text


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"track.wandb: the package wandb is not installed. pip install"):
        tracking.check_services(TrackSettings(wandb="lungs"))
    tracking.check_services(TrackSettings())


@pytest.mark.parametrize(
    "address", ["https://me:secret@mlflow.example:5000", "me:secret@h:5000", "http://h/?key=secret"]
)
def test_an_address_with_a_password_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackSettings(mlflow=address)
    with pytest.raises(ValidationError, match="WANDB_API_KEY"):
        TrackSettings(wandb=address)
    assert TrackSettings(mlflow="sqlite:////data/runs.db").mlflow == "sqlite:////data/runs.db"


def test_who_stops_a_job_does_not_wait_for_a_service(run: Location) -> None:
    pytest.importorskip("mlflow")
    start = time.monotonic()
    with pytest.raises(StoppedError), tracked(run, settings_for(mlflow="http://127.0.0.1:9")):
        raise StoppedError("stopped", signal.SIGTERM)
    assert time.monotonic() - start < 10


def test_a_process_that_is_suspended_holds_nothing_up(run: Location) -> None:
    pytest.importorskip("mlflow")
    with tracking.tracking(TrackSettings(mlflow="http://127.0.0.1:9")) as services:
        process = services._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        for epoch in range(2000):
            services.epoch(run, {**ROW, "epoch": float(epoch)})
        assert time.monotonic() - start < 5
        process.kill()


def test_modules_of_the_working_directory_are_not_imported(
    run: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "LAST_SECONDS", 2.0)
    (tmp_path / "queue.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with tracked(run, settings_for(mlflow="http://127.0.0.1:9")):
        pass
    assert not (tmp_path / "was here").exists()
