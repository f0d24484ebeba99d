"""How long a study searches, what it may cost and what it keeps on disk: nothing of it decides what a trial comes to."""

from __future__ import annotations

from pydantic import Field, model_validator

from adapters.spec import Spec

# Left out of a recipe's digest: the same recipe with another price is the same recipe.
UNDECIDING = ("max_cost", "price_per_hour", "currency", "keep_adapters")


class StudyLimits(Spec):
    """Counted over the study and all its workers, not over one process; see tuning.budget."""

    trials: int = Field(default=20, ge=1)
    time_budget_s: float | None = Field(default=None, gt=0)
    min_trials: int = Field(default=0, ge=0)  # complete ones before the budget ends the sweep; none starts past twice the budget
    stall_timeout_s: float = Field(default=900.0, gt=0)  # without a sign of life; the trial is then stopped and tried again
    max_cost: float | None = Field(default=None, gt=0)  # of all trials together
    price_per_hour: float | None = Field(default=None, gt=0)  # of one worker
    currency: str = ""  # of both, as it is shown
    keep_adapters: int = Field(default=5, ge=1)  # trials whose weights stay on disk; see tuning.kept_weights

    @model_validator(mode="after")
    def _cost_has_a_price(self) -> StudyLimits:
        if self.max_cost is not None and self.price_per_hour is None:
            raise ValueError(
                f"max_cost is counted by price_per_hour, the price of one worker, but max_cost is {self.max_cost:g} and no price "
                "is given. Add study.price_per_hour, or leave out max_cost."
            )
        return self
