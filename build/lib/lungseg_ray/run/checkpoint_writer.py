"""Writes checkpoints while training continues, and deletes those that are no longer kept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lungseg_ray.errors import JobFailedError
from lungseg_ray.run import checkpoint
from lungseg_ray.run.checkpoint import Checkpoint
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import LeaseToken
from lungseg_ray.run.progress import Progress
from lungseg_ray.storage import Location, retry


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, in a thread of its own.

    Args:
        run: The run.
        best: The number of best epochs whose checkpoints are kept.
        patience: The number of seconds for which a failed write is repeated.
        note: Called with a message when the storage fails, and when it works again.
        on_attempt: Called at every attempt, so that the watchdog does not take patience for a standstill.
        token: Shows that the driver holds the run; without it nothing is written.
        last: The newest checkpoint in the storage; None before the first.

    Attributes:
        wait_seconds: Seconds that training has waited for checkpoints since this was last set to 0.
        last: The newest checkpoint in the storage; None before the first.
        error: Why the last checkpoint cannot be written. From then on, none is written.
    """

    def __init__(
        self,
        run: Run,
        *,
        best: int,
        patience: float,
        note: Callable[[str], None],
        on_attempt: Callable[[], None],
        token: LeaseToken,
        last: Location | None = None,
    ) -> None:
        self.wait_seconds = 0.0
        self.last = last
        self.error: OSError | JobFailedError | None = None
        self._run = run
        self._best = best
        self._patience = patience
        self._note = note
        self._on_attempt = on_attempt
        self._token = token
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None

    def save(self, content: Checkpoint, *, skip_if_busy: bool = False) -> None:
        """Takes a copy of a checkpoint and returns; waits only if the one before it is still being written.

        Args:
            content: The checkpoint.
            skip_if_busy: Whether to skip this checkpoint instead of waiting.
        """
        start = time.perf_counter()
        if skip_if_busy and self._pending and not self._pending.done():
            return
        self._settle()
        if not self.error:
            self._pending = self._pool.submit(self._write, checkpoint.copy_to_cpu(content))
        self.wait_seconds += time.perf_counter() - start

    def flush(self) -> None:
        """Waits until the last checkpoint lies in the storage, or until it is known that it cannot be written."""
        start = time.perf_counter()
        self._settle()
        self.wait_seconds += time.perf_counter() - start

    def poll(self) -> None:
        """Checks, without waiting, whether the last checkpoint failed; `error` holds the result."""
        if self._pending and self._pending.done():
            self._settle()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except (OSError, JobFailedError) as error:
                self.error = error

    def _write(self, content: Checkpoint) -> None:
        target = self._run.place / checkpoint.folder_name(content.progress.step)

        def note(text: str) -> None:
            self._note(f"Checkpoint of step {content.progress.step}: {text}")

        # A full disk may be freed, as a bucket may answer again; training continues meanwhile.
        retry(lambda: self._put(target, content), seconds=self._patience, note=note, trouble=OSError)
        self.last = target
        retry(lambda: self._prune(content.progress), seconds=self._patience, note=note, trouble=OSError)

    def _put(self, target: Location, content: Checkpoint) -> None:
        self._on_attempt()
        # While this driver was suspended, another may have taken over; its checkpoints must not mix with these.
        self._token.check()
        _put(target, content)

    def _prune(self, progress: Progress) -> None:
        self._on_attempt()
        self._run.write_history(progress.history)
        self._run.prune_checkpoints(progress, keep=self._best)


def _put(target: Location, content: Checkpoint) -> None:
    """Writes a checkpoint so that it is seen complete or not at all; in a bucket, without its checksums.

    A checkpoint that lies there already was damaged and passed over.
    """
    if target.is_local:
        final = Path(target.path)
        part = final.with_name(f".{final.name}{checkpoint.PART}")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            checkpoint.write_folder(part, content)
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        checkpoint.write_folder(Path(folder), content)
        target.delete()
        target.upload(Path(folder), last=[checkpoint.CHECKSUMS])
