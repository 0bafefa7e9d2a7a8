"""The settings of a sweep: those of a run, the search space, and the method of the search."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, product
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lungseg_ray.config.sections import Settings
from lungseg_ray.config.tree import Mark, Section, leaves, marked, merge, nested

CHECKED = 1000
"""Number of combinations of values, at most, that are validated as settings before a sweep starts."""


class Dimension(Section):
    """The values that one setting may take, given as exactly one of grid, choice, uniform and log_uniform."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="Values that are all tried. With sweep.search = tpe, the same as choice."
    )
    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="Values of which one is drawn for each trial. With sweep.search = grid, all are tried."
    )
    uniform: tuple[float, float] | None = Field(
        None, description="Lowest and highest value of a range, from which values are drawn evenly."
    )
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="Lowest and highest value of a range, from which values are drawn evenly on a log scale."
    )
    also: list[str] = Field([], description="Other settings that get the same value.")

    @model_validator(mode="after")
    def _one_way(self) -> Dimension:
        ways = [way for way in ("grid", "choice", "uniform", "log_uniform") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"expected one of grid, choice, uniform and log_uniform, found {ways or 'none'}")
        bounds = self.uniform or self.log_uniform
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"expected a lowest and a higher value, found {list(bounds)}")
        written = [json.dumps(value, sort_keys=True, default=str) for value in self.values or []]
        if twice := [value for value, count in Counter(written).items() if count > 1]:
            raise ValueError(f"expected each value once, found {twice[0]} more than once")
        return self

    @property
    def values(self) -> list[Any] | None:
        """The values of `grid` or `choice`; None for a range."""
        return self.grid or self.choice

    @property
    def samples(self) -> list[Any]:
        """Values by which the whole dimension is validated: all of them, or both ends and the middle of a range."""
        if bounds := self.uniform or self.log_uniform:
            return [bounds[0], 0.49 * bounds[0] + 0.51 * bounds[1], bounds[1]]
        return self.values or []


class BudgetSettings(Section):
    """The limits on the cost of a trial, or of the whole search. 0: no limit."""

    parameters: NonNegativeFloat = Field(
        0, description="Largest number of parameters, in millions. A trial with more is refused."
    )
    gflops: NonNegativeFloat = Field(
        0,
        description="Largest number of operations of a forward pass at feed.size, in 10^9. A trial with more is "
        "refused.",
    )
    minutes: Annotated[NonNegativeFloat, Mark.MAY_CHANGE] = Field(
        0, description="Duration of stage 1 in minutes. Then its trials stop where they are, and stage 2 begins."
    )


class SearchSettings(Section):
    """The search space, and the method of the search."""

    space: dict[str, Dimension] = Field(
        {}, description="Search space: the values of each searched setting, by its key, such as optim.lr."
    )
    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="Search method. grid: every combination. random: random draws. tpe: draws that learn from the "
        "scores (Optuna).",
    )
    samples: Annotated[PositiveInt, Mark.MAY_CHANGE] = Field(
        16,
        description="Number of draws. random: for each combination of the grids. tpe: in total, with grids as choices.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the draws.")
    epochs: NonNegativeInt = Field(
        0,
        description="Epochs of a trial at full length. 0: train.epochs. The winner is trained for train.epochs by "
        "--from-sweep.",
    )
    stop: Literal["asha", "none"] = Field(
        "asha",
        description="Early stopping of trials in stage 1. asha: after each rung of epochs, only the best continue. "
        "none: all trials train at full length.",
    )
    grace: PositiveInt = Field(1, description="asha: smallest number of epochs that a trial is trained.")
    reduction: Annotated[int, Field(ge=2)] = Field(
        2,
        description="asha: epochs of a rung divided by those of the previous rung. The same number divides the trials: "
        "with 2, half of them are promoted to the next rung.",
    )
    finalists: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        2,
        description="Number of best trials that are trained again with other seeds (stage 2) and measured on the test "
        "split. 0: no stage 2.",
    )
    seeds: Annotated[PositiveInt, Mark.MAY_CHANGE] = Field(
        3, description="Number of seeds of each finalist. None of them is the seed by which it was chosen."
    )
    concurrent: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        0, description="Largest number of trials at a time. 0: as many as fit."
    )
    gpus_per_trial: Annotated[float, Field(gt=0, le=1), Mark.MAY_CHANGE] = Field(
        1.0, description="Share of a GPU for a trial with one worker. 0.5: two trials on each GPU."
    )
    budget: BudgetSettings = BudgetSettings()


class SweepJob(Settings):
    """Search for the best settings: train many short trials, train the best again with several seeds, and report."""

    sweep: SearchSettings = SearchSettings()

    @model_validator(mode="after")
    def _space_fits(self) -> SweepJob:
        known, fixed = set(leaves(Settings)), set(marked(Settings, Mark.NOT_SEARCHED))
        taken: set[str] = set()
        for name, dimension in self.sweep.space.items():
            for key in (name, *dimension.also):
                if key not in known:
                    raise ValueError(f"sweep.space: there is no setting {key!r}; --help lists all")
                if key in fixed:
                    raise ValueError(f"sweep.space: {key} must be the same for all trials and cannot be searched")
                if key in taken:
                    raise ValueError(f"sweep.space: {key} is searched twice")
                taken.add(key)
                if self.model.start and key.startswith("model."):
                    raise ValueError(
                        f"sweep.space: {key} cannot be searched, because model.from names a model that has one"
                    )
            if self.sweep.search == "grid" and dimension.values is None:
                raise ValueError(
                    f"sweep.space: {name} has no end of values; give it a grid, or search at random or tpe"
                )
        for values in islice(product(*(one.samples for one in self.sweep.space.values())), CHECKED):
            self.trial(dict(zip(self.sweep.space, values, strict=True)))
        return self

    @property
    def epochs(self) -> int:
        """The number of epochs of a trial at full length."""
        return self.sweep.epochs or self.train.epochs

    @property
    def rungs(self) -> list[int]:
        """The epochs after which a trial of stage 1 pauses until it is promoted; the last is the full length."""
        rungs = [self.epochs]
        while self.sweep.stop == "asha" and (rung := rungs[0] // self.sweep.reduction) >= self.sweep.grace:
            rungs.insert(0, rung)
        return rungs

    def trial(self, params: dict[str, Any], *, seed: int | None = None) -> Settings:
        """Returns the settings of a trial.

        Args:
            params: A value for each dimension of the search space, by the key of its setting.
            seed: The seed of the trial; None for `train.seed`.

        Raises:
            ValidationError: If a value does not fit its setting.
        """
        tree = self.model_dump(exclude={"sweep"})
        for name, value in params.items():
            for key in (name, *self.sweep.space[name].also):
                tree = merge(tree, nested(key, value))
        # Scores can be compared only after equal numbers of epochs, so a trial is not stopped early.
        tree["train"] |= {"epochs": self.epochs, "early_stop": 0}
        if seed is not None:
            tree["train"]["seed"] = seed
        return Settings.model_validate(tree)
