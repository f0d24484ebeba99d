"""When a trial ends before its time: the table [study.stop] of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from adapters.spec import Spec

Rule = Literal["floor", "dominated"]
Pruner = Literal["none", "median", "hyperband", "wilcoxon"]
Reading = Literal["paying", "always"]


class StopRecipe(Spec):
    """Rules hold in both modes, a pruner of Optuna's in the constrained one; see tuning.stop_rules and tuning.stop_pruners."""

    rules: tuple[Rule, ...] = ("floor", "dominated")
    checkpoints: tuple[float, ...] = (0.33, 0.67)  # shares of a fit's steps after which it is read
    reading: Reading = "paying"  # while it is expected to save more time than it takes; see tuning.stop_worth
    floor: Annotated[float, Field(gt=0)] = 1.0  # the loss, in margins, that no scale may be sure to exceed
    epsilon_gain: Annotated[float, Field(ge=0)] = 0.02  # what one trial must be better by than another, beyond noise
    epsilon_retention: Annotated[float, Field(ge=0)] = 0.1  # in margins
    rivals: Annotated[int, Field(ge=1)] = 3  # that must be better before a trial is dominated
    pruner: Pruner = "none"
    domain_items: Annotated[int, Field(ge=8)] = 32  # of the search split, that a reading looks at
    family_items: Annotated[int, Field(ge=4)] = 8  # of each protected family

    @field_validator("rules")
    @classmethod
    def _once(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"rules names each rule once, but got {list(value)}.")
        return value

    @field_validator("checkpoints")
    @classmethod
    def _in_order(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or any(not 0 < share <= 1 for share in value):
            raise ValueError(f"checkpoints are rising shares of a fit's steps in (0, 1], but got {list(value)}. Take 0.33, 0.67.")
        return value

    @property
    def reads_fits(self) -> bool:
        """Whether anything looks at the readings of a fit."""
        return bool(self.checkpoints) and (bool(self.rules) or self.pruner in ("median", "hyperband"))

    @property
    def reads_all(self) -> bool:
        """Whether every trial is read: a pruner of Optuna's compares all of them."""
        return self.reading == "always" or self.pruner in ("median", "hyperband")

    @property
    def reads_items(self) -> bool:
        """Whether a fitted adapter is first read item by item."""
        return self.pruner == "wilcoxon"

    @property
    def comparable(self) -> StopRecipe:
        """What of it trials of one study must share: what a stopped trial leaves as its value.

        A trial that ends by itself has the same score under any rule; under "wilcoxon" some values are of fewer items.
        """
        return StopRecipe(pruner="wilcoxon" if self.reads_items else "none")


def fits_mode(value: StopRecipe, info: ValidationInfo) -> StopRecipe:
    """Optuna's pruners compare one number."""
    if value.pruner != "none" and info.data.get("mode") != "constrained":
        raise ValueError(
            f"A pruner compares trials by one objective, but stop.pruner is {value.pruner!r} and mode {info.data.get('mode')!r}. "
            'Set study.mode = "constrained", or leave the pruner out: stop.rules hold in both modes.'
        )
    return value
