"""Writes checkpoints while training goes on, and deletes those that are no longer kept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lungseg_ray.errors import JobFailedError
from lungseg_ray.run import checkpoint
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import LeaseToken
from lungseg_ray.run.progress import Progress, steps_to_keep
from lungseg_ray.storage import Location, retry


class CheckpointWriter:
    """Keeps a run's checkpoints, one at a time, in a thread of its own.

    Args:
        run: whose.
        best: how many of the best to keep.
        patience: seconds for which to try again where the storage fails.
        note: told of trouble, and of its end.
        moved: called at every attempt, so that patience is not taken for standing still.
        ticket: of the driver that holds the run; without it nothing is written.

    Attributes:
        waited: seconds that training has waited for it since this was last set to 0.
        last: the newest checkpoint that lies in the storage; None before the first.
        error: why the last one cannot be written; from then on, none is.
    """

    def __init__(
        self,
        run: Run,
        *,
        best: int,
        patience: float,
        note: Callable[[str], None],
        moved: Callable[[], None],
        ticket: LeaseToken,
        last: Location | None = None,
    ) -> None:
        self.waited = 0.0
        self.last = last
        self.error: OSError | JobFailedError | None = None
        self._run = run
        self._best = best
        self._patience = patience
        self._note = note
        self._moved = moved
        self._ticket = ticket
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._pending: Future[None] | None = None

    def save(self, content: checkpoint.Checkpoint, *, spare: bool = False) -> None:
        """Takes a copy and returns; waits only for a checkpoint before that is still on its way.

        Args:
            content: what is kept.
            spare: it is left out rather than waited for.
        """
        start = time.perf_counter()
        if spare and self._pending and not self._pending.done():
            return
        self._settle()
        if not self.error:
            self._pending = self._pool.submit(self._keep, checkpoint.copy_to_cpu(content))
        self.waited += time.perf_counter() - start

    def flush(self) -> None:
        """Waits until the last checkpoint lies in the storage, or cannot be written."""
        start = time.perf_counter()
        self._settle()
        self.waited += time.perf_counter() - start

    def poll(self) -> None:
        """Looks, without waiting, whether the last one failed."""
        if self._pending and self._pending.done():
            self._settle()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except (OSError, JobFailedError) as error:
                self.error = error

    def _keep(self, content: checkpoint.Checkpoint) -> None:
        target = self._run.place / checkpoint.folder_name(content.progress.step)

        def note(text: str) -> None:
            self._note(f"Checkpoint of step {content.progress.step}: {text}")

        # A disk that is full may be emptied, as a bucket may answer again; training goes on meanwhile.
        retry(lambda: self._put(target, content), seconds=self._patience, note=note, trouble=OSError)
        self.last = target
        retry(lambda: self._tidy(content.progress), seconds=self._patience, note=note, trouble=OSError)

    def _put(self, target: Location, content: checkpoint.Checkpoint) -> None:
        self._moved()
        # A driver that was asleep may have been followed by another, whose checkpoints these would mix with.
        self._ticket.check()
        _put(target, content)

    def _tidy(self, progress: Progress) -> None:
        self._moved()
        self._run.write_history(progress.history)
        there = checkpoint.list_checkpoints(self._run.place)
        # Later ones are damaged and were passed over when the run went on from an earlier one.
        steps = [step for step in map(checkpoint.step_of, there) if step <= progress.step]
        stay = steps_to_keep(progress.history, steps, best=self._best)
        for place in there:
            if checkpoint.step_of(place) not in stay:
                place.delete()


def _put(target: Location, content: checkpoint.Checkpoint) -> None:
    """Writes a checkpoint so that it is seen complete or not at all, or in a bucket without its checksums.

    What lies there already was damaged, and was passed over.
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
