"""Runs the trials of one stage of a sweep: Ray Tune asks for them, and tells what they say."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from lungseg_ray.cluster.planning import TrialsPlan
from lungseg_ray.config import SweepJob
from lungseg_ray.errors import JobFailedError, StoppedError
from lungseg_ray.run.lease import Lease
from lungseg_ray.shards.format import ShardIndex
from lungseg_ray.storage import retry
from lungseg_ray.sweep.display import SweepDisplay
from lungseg_ray.sweep.ledger import Sweep
from lungseg_ray.sweep.search import Search
from lungseg_ray.sweep.trial import MORE_MEMORY, SAID, Task, run_trial
from lungseg_ray.workers.mailbox import Mailbox, Pulse, mailbox
from lungseg_ray.workers.signals import signals
from lungseg_ray.workers.watchdog import Watchdog

LOOK_SECONDS = 0.25
STILL_SECONDS = 60.0
"""A sweep that is asked to stop does not wait longer for trials that do not move."""

Stage = Literal[1, 2]


class TrialRunner:
    """Runs the trials of one stage.

    Args:
        stage: 1 or 2.
        hold: the lease of the sweep.
    """

    def __init__(
        self,
        job: SweepJob,
        place: Sweep,
        index: ShardIndex,
        shared: dict[str, Any],
        layout: TrialsPlan,
        hold: Lease,
        console: Console,
        stage: Stage,
    ) -> None:
        self._job = job
        self._place = place
        self._index = index
        self._shared = shared
        self._layout = layout
        self._hold = hold
        self._console = console
        self._stage = stage
        self._key = f"stage {stage}"
        self._before = place.seconds()
        self._search = Search(job, place.trials(), stage)
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._silent: set[str] = set()
        self._lost_in_silence = 0
        self._start = time.monotonic()
        self._over = self._out_of_time()
        self._ends: str | None = None
        self._live = SweepDisplay(console, place, job, stage)

    def conduct(self) -> None:
        """Trains until there is no move left.

        Raises:
            JobFailedError: if nothing moves any more, storage fails for too long, or the lease is lost.
            StoppedError: if a signal asked for it.
        """
        if self._over or not self._search.has_moves():
            return
        # What Tune would print and write of a trial, the table and the ledger have.
        os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
        with (
            mailbox() as box,
            tempfile.TemporaryDirectory(prefix="lungseg-ray-") as scratch,
            signals() as asked,
            self._live,
        ):
            task = Task(self._job, self._place, self._index, self._shared, self._layout, box, self._hold.ticket)
            errors: list[BaseException] = []
            tuner = self._tuner(task, scratch)
            thread = threading.Thread(target=_caught, args=(tuner.fit, errors), name="tune", daemon=True)
            thread.start()
            try:
                self._follow(thread, box, asked)
            finally:
                self.write()
        if asked:
            raise StoppedError("Stopped; each trial has saved where it was, and the same command goes on.", asked[0])
        if self._ends:
            raise JobFailedError(f"{self._ends} What was saved is safe, and the same command goes on.")
        if errors:
            raise errors[0]

    def _tuner(self, task: Task, scratch: str) -> tune.Tuner:
        layout = self._layout
        needs = {"CPU": layout.cpus, **({"GPU": layout.gpus} if layout.gpus else {})}
        trainable = tune.with_resources(tune.with_parameters(run_trial, task=task), needs)
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Moves(self),
                num_samples=-1,
                max_concurrent_trials=layout.concurrent,
                # What a job of several workers leaves in its process might hold the next one's CPUs.
                reuse_actors=layout.training.workers == 1,
            ),
            # What lasts lies in the sweep's folder; Ray's own records are pickles, and lag behind.
            run_config=tune.RunConfig(
                name=self._place.place.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=self._job.train.max_failures),
                verbose=0,
            ),
        )

    def _follow(self, thread: threading.Thread, box: Mailbox, asked: list[int]) -> None:
        watchdog = Watchdog(self._job.train.stall_seconds, self._live.note)
        told = False
        moves: dict[int, int] = {}
        moved = time.monotonic()
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            self._hold.check()
            if not self._over and self._out_of_time():
                self._over = True
                self._live.note("The time of stage 1 is over: its trials leave off where they are.")
            if (asked or self._over or self._ends) and not told:
                told = True
                box.stop()
                if asked:
                    self._over = True
                    self._live.note("Stopping: trials save and leave off; a second Ctrl-C stops at once.")
            try:
                _, pulses, _ = box.take()
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError as error:
                raise JobFailedError(f"Ray is gone on this machine ({error}). The same command goes on.") from error
            running = {trial.number for trial in self._search.trials if trial.state == "running"}
            pulses = {number: pulse for number, pulse in pulses.items() if number in running}
            before, moves = moves, {number: pulse.moves for number, pulse in pulses.items()}
            moved = time.monotonic() if moves != before else moved
            if asked and time.monotonic() > moved + STILL_SECONDS:
                return
            watchdog.look(moves, now=time.monotonic(), waiting_for=partial(_waiting_for, pulses))
            self._live.refresh()

    def _out_of_time(self) -> bool:
        minutes = self._job.sweep.budget.minutes
        return self._stage == 1 and bool(minutes) and self._seconds() > 60 * minutes

    def _seconds(self) -> float:
        return self._before.get(self._key, 0.0) + time.monotonic() - self._start

    def suggest(self, tune_id: str) -> dict[str, Any] | Literal["FINISHED"] | None:
        """The next trial for Ray Tune; None if there may be one later."""
        with self._lock:
            ended = self._over or self._ends
            move = None if ended else self._search.next()
            if move is None:
                return None if self._search.flying and not ended else Searcher.FINISHED
            self._numbers[tune_id] = move.trial.number
        self._silent.add(tune_id)
        self._keep()
        return {"trial": move.trial.model_dump(), "until": move.until, "dealt": time.time()}

    def hear(self, tune_id: str, said: dict[str, Any]) -> None:
        """Takes note of what a trial says, as `trial._say` has it."""
        number = self._numbers[tune_id]
        self._silent.discard(tune_id)
        for note in said.get("notes", ()):
            self._live.note(f"Trial {number}: {note}")
        self._ends = said.get("ends", self._ends)
        if said.get("facts"):
            with self._lock:
                self._search.update(number, said["facts"])
            self._live.show(self._search.trials)
        if "row" in said:
            self._keep()
            self._live.epoch(self._search.trial(number), said["row"])

    def land(self, tune_id: str, *, lost: bool) -> None:
        """Takes note that a trial has left off."""
        number = self._numbers.pop(tune_id)
        allowed = self._job.train.max_failures
        facts = {}
        if lost and tune_id in self._silent and self._lost_in_silence < allowed:
            # The process died that was to take it up next; the trial has not begun.
            self._lost_in_silence += 1
        elif lost:
            times = f"{allowed + 1} times (train.max_failures)"
            facts = {"state": "failed", "reason": f"Its process ended {times}, killed or out of memory. {MORE_MEMORY}"}
        self._silent.discard(tune_id)
        with self._lock:
            trial = self._search.land(number, facts)
        self._keep()
        self._live.landed(trial)

    def _keep(self) -> None:
        """Writes the ledger and shows it; Ray Tune would lose, or take for a trial's own, what goes wrong in it."""
        try:
            self.write()
        except (OSError, JobFailedError) as error:
            self._ends = str(error)
        self._live.show(self._search.trials)

    def write(self) -> None:
        """Writes the ledger.

        Raises:
            JobFailedError: if another driver has taken the sweep over.
            OSError: if it cannot be written.
        """
        with self._lock:
            trials = self._search.trials
        seconds = {**self._before, self._key: round(self._seconds(), 1)}

        def work() -> None:
            self._hold.ticket.check()
            self._place.write_trials(trials, seconds)

        patience = self._job.storage.patience_seconds
        retry(work, seconds=patience, note=self._live.note, trouble=OSError)


class _Moves(Searcher):
    """The search as Ray Tune asks for it. What Tune would save of it is in the ledger already."""

    def __init__(self, conductor: TrialRunner) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> Any:
        return self._conductor.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._conductor.hear(trial_id, json.loads(result[SAID]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._conductor.land(trial_id, lost=error)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass


def _waiting_for(pulses: dict[int, Pulse]) -> str:
    doing = [f"trial {number}: {pulse.doing}" for number, pulse in sorted(pulses.items())]
    return "; ".join(doing) or "a trial to start"


def _caught(work: Callable[[], Any], errors: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        errors.append(error)
