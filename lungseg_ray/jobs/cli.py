"""The command line of all jobs: it reads the settings, runs the job, and turns errors into messages and exit codes.

The scripts in `jobs/` call `main` with their name. The installed package has the same commands as `lungseg-ray NAME`.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

import lungseg_ray
from lungseg_ray.config import (
    EvaluateJob,
    PredictJob,
    ReportJob,
    Section,
    ShardJob,
    SweepJob,
    TrainJob,
    load_settings,
)
from lungseg_ray.errors import JobFailedError, StoppedError, UserError
from lungseg_ray.home import ensure_home
from lungseg_ray.jobs.console import JobConsole, end_with_terminal, harden_streams
from lungseg_ray.termination import ignore_signals, interrupt_on_sigterm, undisturbed, was_terminated
from lungseg_ray.text import printable

AnyJob = TypeVar("AnyJob", bound=Section)

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
STARTED = time.time()
"""The time at which the command started (this module was imported), seconds since 1970."""


@dataclass(frozen=True)
class Command:
    """A command. The module `lungseg_ray.jobs.NAME` has a function `main` that takes its settings and a console.

    Attributes:
        settings: The class of its settings.
        purpose: What it does, in one line for the user.
    """

    settings: type[Section]
    purpose: str


COMMANDS = {
    "shard": Command(ShardJob, "build shards from a corpus of X-rays and masks"),
    "audit": Command(ShardJob, "check a corpus before shards are built from it"),
    "train": Command(TrainJob, "train a model, or resume its training"),
    "tune": Command(SweepJob, "search encoders, architectures and other settings"),
    "evaluate": Command(EvaluateJob, "measure a trained model on images with masks"),
    "predict": Command(PredictJob, "write the masks that a trained model predicts for images"),
    "report": Command(ReportJob, "write the HTML page of a run or a sweep"),
}


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        name: The name of the command, one of `COMMANDS`.
        arguments: The arguments of the command line; None for those of this process.

    Returns:
        The exit code, as `run_job` returns it.

    Raises:
        KeyError: If there is no such command.
        SystemExit: As `run_job`.
    """
    ensure_home()
    # The module of a job imports Ray and PyTorch, which takes seconds. --help and most mistakes need neither.
    code = run_job(
        COMMANDS[name].settings,
        lambda settings, console: importlib.import_module(f"lungseg_ray.jobs.{name}").main(settings, console),
        sys.argv[1:] if arguments is None else arguments,
    )
    ignore_signals()
    return code


def command_line() -> int:
    """Runs the program `lungseg-ray`. Its first argument names the command; the others are those of the command.

    Returns:
        The exit code, as `run_job` returns it; 0 after `--help` and `--version`, and 2 for an unknown command.

    Raises:
        SystemExit: As `run_job`.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[0] = f"{Path(sys.argv[0]).name} {name}"
        return main(name, arguments)
    if name == "--version":
        print(f"lungseg-ray {lungseg_ray.__version__}")
        return OK
    lines = [f"  {command:9} {one.purpose}" for command, one in COMMANDS.items()]
    usage = "\n".join(["usage: lungseg-ray COMMAND [--section.key value ...]", "", *lines])
    if name in ("-h", "--help"):
        print(f"{usage}\n\n`lungseg-ray COMMAND --help` lists the settings of a command.")
        return OK
    print(f"Error: there is no command {name!r}.\n{usage}", file=sys.stderr)
    return MISTAKE


def run_job(tree: type[AnyJob], job: Callable[[AnyJob, Console], None], arguments: Sequence[str]) -> int:
    """Reads the settings of a job and runs it. Errors become a message on stderr and an exit code.

    Args:
        tree: The class of the job's settings.
        job: The function to run; it takes the settings, and the console that the user reads.
        arguments: The arguments of the command line.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake of the user's, 130 for Ctrl-C, 143 for SIGTERM.

    Raises:
        SystemExit: After `--help`, with the exit code 0; also if the job itself exits for another reason than SIGTERM.
    """
    harden_streams()
    end_with_terminal()
    interrupt_on_sigterm()
    console = JobConsole(soft_wrap=True, markup=False)
    try:
        job(load_settings(tree, arguments), console)
    except UserError as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        return MISTAKE
    except StoppedError as stopped:
        print(printable(str(stopped)), file=sys.stderr)
        return 128 + stopped.signal
    except (OSError, JobFailedError) as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        return FAILED
    except SystemExit as left:
        # On SIGTERM, Ray exits with the number of the signal.
        if left.code != signal.SIGTERM:
            raise
        print("Terminated; the same command resumes.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        with undisturbed():
            print(f"{'Terminated' if was_terminated() else 'Interrupted'}; the same command resumes.", file=sys.stderr)
        return 128 + signal.SIGTERM if was_terminated() else INTERRUPTED
    except Exception:
        print(printable(traceback.format_exc()), file=sys.stderr)
        return FAILED
    return OK
