"""The settings of a sweep: those of a run, and what of them is searched."""

from __future__ import annotations

from itertools import islice, product
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lungseg_ray.config.sections import Settings
from lungseg_ray.config.tree import Mark, Section, leaves, marked, merge, nested

CHECKED = 1000
"""Combinations of values that are tried on the settings before a sweep starts."""


class Dimension(Section):
    """The values that one setting may take; one of the four ways to say it."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = Field(None, description="Each of these values.")
    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(None, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="Lowest and highest value.")
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="Lowest and highest value, drawn evenly on a logarithmic scale."
    )
    also: list[str] = Field([], description="Settings that take the same value.")

    @model_validator(mode="after")
    def _one_way(self) -> Dimension:
        ways = [way for way in ("grid", "choice", "uniform", "log_uniform") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"expected one of grid, choice, uniform and log_uniform, found {ways or 'none'}")
        bounds = self.uniform or self.log_uniform
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"expected a lowest and a higher value, found {list(bounds)}")
        return self

    @property
    def values(self) -> list[Any] | None:
        """The values, where they can be counted."""
        return self.grid or self.choice

    @property
    def samples(self) -> list[Any]:
        """Values that say whether all of them fit their setting."""
        if bounds := self.uniform or self.log_uniform:
            return [bounds[0], 0.49 * bounds[0] + 0.51 * bounds[1], bounds[1]]
        return self.values or []


class BudgetSettings(Section):
    """What a trial, or the whole search, may cost; 0: no limit."""

    parameters: NonNegativeFloat = Field(0, description="Millions of parameters; a trial with more is refused.")
    gflops: NonNegativeFloat = Field(
        0, description="10^9 operations of a forward pass at feed.size; a trial with more is refused."
    )
    minutes: Annotated[NonNegativeFloat, Mark.MAY_CHANGE] = Field(
        0, description="Time of stage 1; then its trials leave off where they are, and stage 2 begins."
    )


class SearchSettings(Section):
    """What is searched, and how."""

    space: dict[str, Dimension] = Field(
        {}, description="Values of each setting that is searched, by its place in the tree, such as optim.lr."
    )
    search: Literal["grid", "random", "tpe"] = Field(
        "grid", description="grid: every combination. random: draws. tpe: draws that learn from the scores (Optuna)."
    )
    samples: Annotated[PositiveInt, Mark.MAY_CHANGE] = Field(
        16, description="random: draws for each combination of the grids. tpe: draws, grids counting as choices."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Of the draws.")
    epochs: NonNegativeInt = Field(
        0, description="Epochs of a trial; 0: train.epochs. The winner is trained for train.epochs by --from-sweep."
    )
    stop: Literal["asha", "none"] = Field(
        "asha", description="asha: only the best go on after each rung of epochs (stage 1)."
    )
    grace: PositiveInt = Field(1, description="asha: the least epochs that any trial gets.")
    reduction: Annotated[int, Field(ge=2)] = Field(
        2,
        description="asha: of so many trials one goes on from a rung to the next, which has so many times its epochs.",
    )
    finalists: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        2,
        description="How many of the best are trained again with other seeds (stage 2), and measured on the test side.",
    )
    seeds: Annotated[PositiveInt, Mark.MAY_CHANGE] = Field(
        3, description="Seeds of each finalist; none of them is the one it was chosen by."
    )
    concurrent: Annotated[NonNegativeInt, Mark.MAY_CHANGE] = Field(
        0, description="Trials at a time; 0: as many as fit."
    )
    gpus_per_trial: Annotated[float, Field(gt=0, le=1), Mark.MAY_CHANGE] = Field(
        1.0, description="Share of a GPU for a trial of one worker; 0.5 puts two trials on each."
    )
    budget: BudgetSettings = BudgetSettings()


class SweepJob(Settings):
    """Search settings: many short trials, the best of them again with several seeds, and a report."""

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
            if self.sweep.search == "grid" and dimension.values is None:
                raise ValueError(
                    f"sweep.space: {name} has no end of values; give it a grid, or search at random or tpe"
                )
        for values in islice(product(*(one.samples for one in self.sweep.space.values())), CHECKED):
            self.trial(dict(zip(self.sweep.space, values, strict=True)))
        return self

    @property
    def epochs(self) -> int:
        """Epochs of a trial at full length."""
        return self.sweep.epochs or self.train.epochs

    @property
    def rungs(self) -> list[int]:
        """Epochs after which a trial of stage 1 leaves off until it is among the best; the last is the full length."""
        rungs = [self.epochs]
        while self.sweep.stop == "asha" and (rung := rungs[0] // self.sweep.reduction) >= self.sweep.grace:
            rungs.insert(0, rung)
        return rungs

    def trial(self, params: dict[str, Any], *, seed: int | None = None) -> Settings:
        """The settings of a trial.

        Args:
            params: a value for each dimension of the space.
            seed: of the trial; by default `train.seed`.

        Raises:
            ValidationError: if a value does not fit its setting.
        """
        tree = self.model_dump(exclude={"sweep"})
        for name, value in params.items():
            for key in (name, *self.sweep.space[name].also):
                tree = merge(tree, nested(key, value))
        # Scores compare at equal lengths alone.
        tree["train"] |= {"epochs": self.epochs, "early_stop": 0}
        if seed is not None:
            tree["train"]["seed"] = seed
        return Settings.model_validate(tree)
