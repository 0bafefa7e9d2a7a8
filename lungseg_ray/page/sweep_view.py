"""A sweep as it is read once for its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lungseg_ray.config import SweepJob
from lungseg_ray.page import charts
from lungseg_ray.sweep.ledger import Sweep, Trial


@dataclass(frozen=True)
class SweepView:
    """A sweep as it is read once for its page.

    Attributes:
        sweep: its folder.
        job: its settings.
        trials: all, by number.
        found: what `compare.summarise` says of them.
        finished: whether nothing is left to do.
        base: what links to the trials' folders start with.
    """

    sweep: Sweep
    job: SweepJob
    trials: list[Trial]
    found: dict[str, Any]
    finished: bool
    base: str

    @cached_property
    def search(self) -> list[Trial]:
        """Trials of stage 1 with a score, which can be compared with each other."""
        by_number = {trial.number: trial for trial in self.trials}
        return [by_number[number] for number in sorted(self.found["ranking"])]

    def styles(self, setting: str) -> dict[str, charts.Style]:
        """A look for each value of a setting; one for all if it is not searched."""
        dimension = self.job.sweep.space.get(setting)
        listed = [str(value) for value in (dimension.values if dimension else None) or ()]
        return charts.styles([*listed, *(value_of(trial, setting) for trial in self.search)])

    def order(self) -> Iterator[Trial]:
        """Trials from the best on: the finalists' as they came out, then those of the search."""
        by_number = {trial.number: trial for trial in self.trials}
        for row in self.found["finalists"]:
            yield from sorted((by_number[number] for number in row["trials"]), key=lambda trial: -(trial.score or 0))
        yield from (by_number[number] for number in self.found["ranking"])


def value_of(trial: Trial, setting: str) -> str:
    """A trial's value of a setting; `all trials` if it is not searched."""
    return str(trial.params.get(setting, "all trials"))
