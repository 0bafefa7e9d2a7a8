"""The start and the end of all jobs: the scripts in `jobs/` call `main` with their name.

The installed package has the same commands as `lungseg-ray NAME`. Little is imported here, so that a job can be
interrupted from its first moment on.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lungseg_ray
from lungseg_ray.imports import quick_imports
from lungseg_ray.termination import first_signal, ignore_signals, interrupt_on_signals

OK, FAILED, MISTAKE = 0, 1, 2
STARTED = time.time()
"""The time at which the command started (this module was imported), seconds since 1970."""

PURPOSES = {
    "shard": "build shards from a corpus of X-rays and masks",
    "audit": "check a corpus before shards are built from it",
    "plan": "choose settings by the time and the memory that there are",
    "train": "train a model, or resume its training",
    "tune": "search encoders, architectures and other settings",
    "evaluate": "measure a trained model on images with masks",
    "predict": "write the masks that a trained model predicts for images",
    "review": "write a page for judging predicted masks",
    "deliver": "write predicted masks for hospitals and annotators",
    "export": "write a trained model for other programs",
    "report": "write the HTML page of a run or a sweep",
}
"""What each command does, in one line for the user."""


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        name: The name of the command, one of `PURPOSES`.
        arguments: The arguments of the command line; None for those of this process.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake of the user's, 130 for Ctrl-C, 143 for SIGTERM and SIGHUP.

    Raises:
        SystemExit: As `lungseg_ray.jobs.command.run`.
    """
    interrupt_on_signals()
    try:
        with quick_imports():
            command = importlib.import_module("lungseg_ray.jobs.command")
        code: int = command.run(name, sys.argv[1:] if arguments is None else arguments)
        return code
    except KeyboardInterrupt:
        number = first_signal()
        word = "Interrupted" if number == signal.SIGINT else "Terminated"
        print(f"{word}; the same command resumes.", file=sys.stderr)
        return 128 + number
    finally:
        ignore_signals()


def command_line() -> int:
    """Runs the program `lungseg-ray`. Its first argument names the command; the others are those of the command.

    Returns:
        The exit code, as `main` returns it; 0 after `--help` and `--version`, and 2 for an unknown command.

    Raises:
        SystemExit: As `main`.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in PURPOSES:
        sys.argv[0] = f"{Path(sys.argv[0]).name} {name}"
        return main(name, arguments)
    if name == "--version":
        print(f"lungseg-ray {lungseg_ray.__version__}")
        return OK
    lines = [f"  {command:9} {purpose}" for command, purpose in PURPOSES.items()]
    usage = "\n".join(["usage: lungseg-ray COMMAND [--section.key value ...]", "", *lines])
    if name in ("-h", "--help"):
        print(f"{usage}\n\n`lungseg-ray COMMAND --help` lists the settings of a command.")
        return OK
    print(f"Error: there is no command {name!r}.\n{usage}", file=sys.stderr)
    return MISTAKE
