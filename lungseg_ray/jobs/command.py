"""A command between its start and its end: it reads the settings, runs the job, and turns errors into messages."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console

from lungseg_ray.config import (
    DeliverJob,
    EvaluateJob,
    ExportJob,
    PlanJob,
    PredictJob,
    ReportJob,
    ReviewJob,
    Section,
    ShardJob,
    SweepJob,
    TrainJob,
    load_settings,
)
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.home import ensure_home
from lungseg_ray.imports import quick_imports
from lungseg_ray.jobs.cli import FAILED, MISTAKE, OK
from lungseg_ray.jobs.console import JobConsole, harden_streams
from lungseg_ray.termination import reported_by
from lungseg_ray.text import printable

AnyJob = TypeVar("AnyJob", bound=Section)

SETTINGS: dict[str, type[Section]] = {
    "shard": ShardJob,
    "audit": ShardJob,
    "plan": PlanJob,
    "train": TrainJob,
    "tune": SweepJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
    "review": ReviewJob,
    "deliver": DeliverJob,
    "export": ExportJob,
    "report": ReportJob,
}
"""The class of the settings of each command.

The module `lungseg_ray.jobs.NAME` has a function `main` that takes the settings and a console.
"""


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        name: The name of the command, one of `SETTINGS`.
        arguments: The arguments of the command line.

    Returns:
        The exit code, as `run_job` returns it.

    Raises:
        KeyError: If there is no such command.
        KeyboardInterrupt: As `run_job`.
        SystemExit: As `run_job`.
    """
    ensure_home()

    def job(settings: Section, console: Console) -> None:
        # The module of a job imports Ray and PyTorch, which takes seconds. --help and most mistakes need neither.
        with quick_imports():
            module = importlib.import_module(f"lungseg_ray.jobs.{name}")
        module.main(settings, console)

    return run_job(SETTINGS[name], job, arguments)


def run_job(tree: type[AnyJob], job: Callable[[AnyJob, Console], None], arguments: Sequence[str]) -> int:
    """Reads the settings of a job and runs it. Errors become a message on stderr and an exit code.

    Args:
        tree: The class of the job's settings.
        job: The function to run; it takes the settings, and the console that the user reads.
        arguments: The arguments of the command line.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake of the user's, 128 and the number of the signal that stopped
        the job.

    Raises:
        KeyboardInterrupt: If a signal interrupts the job.
        SystemExit: After `--help`, with the exit code 0; also if the job itself exits for another reason than SIGTERM.
    """
    harden_streams()
    console = JobConsole(soft_wrap=True, markup=False)
    told: list[BaseException] = []

    def tell(error: BaseException) -> None:
        if isinstance(error, Exception) and not any(error is one for one in told):
            told.append(error)
            print(printable(_message(error)), file=sys.stderr, flush=True)

    try:
        with reported_by(tell):
            job(load_settings(tree, arguments), console)
    except SystemExit as left:
        # On SIGTERM, Ray exits with the number of the signal.
        if left.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from left
    except Exception as error:
        tell(error)
        if isinstance(error, StoppedError):
            return 128 + error.signal
        return MISTAKE if isinstance(error, UserError) else FAILED
    return OK


def _message(error: Exception) -> str:
    if isinstance(error, StoppedError):
        return str(error)
    if isinstance(error, UserError | OSError | JobFailedError):
        return f"Error: {error}"
    return "".join(traceback.format_exception(error))
