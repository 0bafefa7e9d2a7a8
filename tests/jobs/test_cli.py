from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.jobs import command
from lungseg_ray.termination import report_now
from tests.helpers import ROOT

JOBS = ("shard", "train", "evaluate", "predict")


def run(error: BaseException | None, *arguments: str) -> int:
    def job(settings: Settings, console: Console) -> None:
        console.print(f"epochs {settings.train.epochs}")
        if error:
            raise error

    return command.run_job(Settings, job, arguments)


def test_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None, "--train.epochs", "7") == 0
    assert capsys.readouterr() == ("epochs 7\n", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("the folder is not there"), 2, "Error: the folder is not there\n"),
        (PermissionError(13, "Permission denied", "/data"), 1, "Error: [Errno 13] Permission denied: '/data'\n"),
    ],
)
def test_failures_are_told_without_a_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert "Traceback" not in captured.out


def test_an_error_that_is_told_early_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    def job(settings: Settings, console: Console) -> None:
        error = UserError("the folder is not there")
        report_now(error)
        assert capsys.readouterr().err == "Error: the folder is not there\n"
        raise error

    assert command.run_job(Settings, job, []) == 2
    assert capsys.readouterr().err == ""


_INTERRUPTED = """
import signal, sys, time, weakref
from lungseg_ray.config import Settings
from lungseg_ray.jobs import cli, command
from lungseg_ray.termination import interrupt, undisturbed

class Thing: ...

signals = [getattr(signal, name) for name in sys.argv[2:]]

def job(settings, console):
    if sys.argv[1] == "later":
        with undisturbed("Not now.") as received:
            for one in signals:
                signal.raise_signal(one)
            print("all of it")
        interrupt(received[0])
    try:
        if sys.argv[1] == "in a callback":
            thing = Thing()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(signals[0]))
            del thing
            time.sleep(300)
            print("not interrupted")
        signal.raise_signal(signals[0])
    finally:
        for one in signals[1:]:
            signal.raise_signal(one)
        print("cleaned up")

command.run = lambda name, arguments: command.run_job(Settings, job, arguments)
code = cli.main("train", [])
for one in signals:
    signal.raise_signal(one)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("signals", "code", "word"),
    [
        (("SIGINT",), 130, "Interrupted"),
        (("SIGTERM",), 143, "Terminated"),
        (("SIGHUP",), 143, "Terminated"),
        (("SIGTERM", "SIGTERM"), 143, "Terminated"),
        (("SIGTERM", "SIGINT"), 143, "Terminated"),
        (("SIGINT",) * 6, 130, "Interrupted"),
    ],
)
def test_signals(signals: tuple[str, ...], code: int, word: str) -> None:
    """The first one interrupts the job. What it does to clean up, and its exit, are not interrupted again."""
    for moment in ("at once", "in a callback"):
        found = call("-c", _INTERRUPTED, moment, *signals)
        assert (found.returncode, found.stdout) == (code, "cleaned up\n")
        assert found.stderr == f"{word}; the same command resumes.\n"
    found = call("-c", _INTERRUPTED, "later", *signals)
    assert (found.returncode, found.stdout) == (code, "all of it\n")
    assert found.stderr == f"Not now.\n{word}; the same command resumes.\n"


def test_little_is_imported_before_signals_are_handled() -> None:
    assert (
        call("-c", "import sys, lungseg_ray.jobs.cli; assert not {'pydantic', 'rich'} & {*sys.modules}").returncode == 0
    )


def test_our_own_failure_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ZeroDivisionError("by us")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: by us" in err


def test_mistake_in_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None, "--train.epoch", "3") == 2
    captured = capsys.readouterr()
    assert captured.err == "Error: --train.epoch: there is no such setting. Did you mean train.epochs?\n"
    assert captured.out == ""


def call(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LUNGSEG_")}
    return subprocess.run(
        [sys.executable, *options, *arguments],
        cwd=ROOT,
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_imports_nothing_heavy(job: str) -> None:
    found = call(f"jobs/{job}.py", "--help", options=("-X", "importtime"))
    assert found.returncode == 0
    assert found.stdout.startswith(f"usage: {job}.py")
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines()}
    assert "lungseg_ray.config" in imported
    assert not imported & {"torch", "ray", "albumentations", "cv2", "timm", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jobs/train.py", "--optim.lrate", "3"), "--optim.lrate: there is no such setting. Did you mean optim.lr"),
        (("jobs/shard.py", "--shard.rows", "3"), "Did you mean shards.rows?"),
        (("jobs/evaluate.py",), "--run is needed"),
        (("jobs/predict.py", "--run", "x", "--images", "y"), "--out is needed"),
    ],
)
def test_mistakes_exit_with_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    found = call(*arguments)
    assert found.returncode == 2
    assert found.stderr.startswith("Error: ")
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
