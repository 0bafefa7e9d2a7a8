"""What every job does around its one call: settings in, messages and an exit code out."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

from lungseg_ray.config import Section, load_settings
from lungseg_ray.errors import JobFailedError, StoppedError, UserError

AnyJob = TypeVar("AnyJob", bound=Section)

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def run(tree: type[AnyJob], job: Callable[[AnyJob, Console], None]) -> int:
    """Runs a job with the settings of the command line.

    Args:
        tree: its settings.
        job: takes them, and a console to tell the user on.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake of the user's, 130 for Ctrl-C, 143 for SIGTERM.
    """
    console = Console(soft_wrap=True, markup=False)
    try:
        job(load_settings(tree, sys.argv[1:]), console)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return MISTAKE
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except (OSError, JobFailedError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as left:
        # Ray answers SIGTERM by leaving with the signal's number.
        if left.code != signal.SIGTERM:
            raise
        print("Terminated; the same command goes on.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED
    return OK
