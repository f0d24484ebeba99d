"""How a recipe's fit is laid out on the machine."""

from __future__ import annotations

from pydantic import Field

from adapters.spec import Spec


class FitRecipe(Spec):
    """How a fit is laid out on the machine. It changes an adapter by rounding alone, and so is no part of what a recipe is."""

    processes: int = Field(default=1, ge=1)  # that share every batch, each with the backbone or, sharded, with its part of it
    accelerate: str | None = None  # a config file of `accelerate config`, for a backbone that is sharded
    gradient_checkpointing: bool = False  # activations are computed again in the backward: less memory, more time

    @property
    def is_launched(self) -> bool:
        """Whether the fit has processes of its own."""
        return self.processes > 1 or self.accelerate is not None
