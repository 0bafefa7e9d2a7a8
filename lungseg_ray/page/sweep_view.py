"""The data of a sweep that the chapters of its page share, so that they are read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from lungseg_ray.config import SweepJob
from lungseg_ray.page import charts
from lungseg_ray.run.progress import SCORES
from lungseg_ray.sweep.ledger import Sweep, Trial
from lungseg_ray.sweep.summary import SweepSummary


@dataclass(frozen=True)
class SweepView:
    """The data of a sweep, which is read once for its page.

    Attributes:
        sweep: The folder of the sweep.
        job: The settings of the sweep.
        trials: All trials, ordered by number.
        found: The results, as `compare.summarise_sweep` returns them.
        finished: Whether the sweep is finished.
        base: The beginning of the links to the folders of the trials.
    """

    sweep: Sweep
    job: SweepJob
    trials: list[Trial]
    found: SweepSummary
    finished: bool
    base: str

    @property
    def figure(self) -> str:
        """The name of the figure by which trials are compared, such as `IoU`."""
        return SCORES[self.job.train.best_by]

    @property
    def score(self) -> str:
        """The same, with the images of which it is: `validation IoU`."""
        return f"validation {self.figure}"

    @cached_property
    def search(self) -> list[Trial]:
        """The trials of stage 1 whose scores can be compared with each other, ordered by number."""
        by_number = {trial.number: trial for trial in self.trials}
        return [by_number[number] for number in sorted(self.found["ranking"])]

    def styles(self, setting: str) -> dict[str, charts.Style]:
        """Returns a style for each value of a setting such as `model.encoder`; one style if it is not searched."""
        dimension = self.job.sweep.space.get(setting)
        listed = [str(value) for value in (dimension.values if dimension else None) or ()]
        return charts.styles([*listed, *(value_of(trial, setting) for trial in self.search)])

    def order(self) -> Iterator[Trial]:
        """Yields the trials from the best to the worst: the finalists in their order, then those of the search."""
        by_number = {trial.number: trial for trial in self.trials}
        for row in self.found["finalists"]:
            yield from sorted((by_number[number] for number in row["trials"]), key=lambda trial: -(trial.score or 0))
        yield from (by_number[number] for number in self.found["ranking"])


def value_of(trial: Trial, setting: str) -> str:
    """Returns the value of a setting in a trial as text; `all trials` if the setting is not searched."""
    return str(trial.params.get(setting, "all trials"))
