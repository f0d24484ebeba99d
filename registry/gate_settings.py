"""What a gate asks for: margins, alpha, and how many items and how much time it may use."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FIRST = 0.9  # of alpha for the first candidates of a name: the shares of all that may follow add up to the rest


class GateSettings(BaseModel):
    """Margins are losses that are tolerable, in the family's own units.

    A family with an entry in `spans` is read in nats per token, and the entry is the largest difference that is counted;
    every other family is a share, of span 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(default=0.02, gt=0, lt=1)
    nats_margin: float = Field(default=0.05, gt=0, lt=1)  # of the families in nats per token
    margins: dict[str, float] = Field(default_factory=dict)  # by family, where it differs from these two
    pooled_margin: float | None = Field(default=None, gt=0, lt=1)  # of all shares together; None: no pooled test
    min_domain_gain: float = Field(default=0.0, ge=0, lt=1)  # the interval of the gain must lie above this
    alpha: float = Field(default=0.05, gt=0, lt=0.5)  # of promoting any candidate that should not be
    num_candidates: int = Field(default=1, ge=1, le=3)  # alpha is divided among them
    restarts: int = Field(default=0, ge=0)  # which of the name's shares of alpha this is, from 0: see `Share`
    time_budget_s: float = Field(default=3600.0, gt=0)
    round_items: int = Field(default=100, ge=1)  # a family and round
    max_rounds: int = Field(default=20, ge=1)
    spans: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _margins_are_losses(self) -> GateSettings:
        for kind, values in (("margin", self.margins), ("span", self.spans)):
            for family, value in values.items():
                if value <= 0:
                    raise ValueError(f"A {kind} must be above 0, but that of {family!r} is {value}. Correct or remove it.")
        return self

    @property
    def candidate_alpha(self) -> float:
        """What this gate may spend: the first share is 0.9 of alpha, share k is 0.1 / (k (k + 1)), and all together are alpha."""
        share = _FIRST if self.restarts == 0 else (1 - _FIRST) / (self.restarts * (self.restarts + 1))
        return self.alpha / self.num_candidates * share

    def margin_of(self, family: str) -> float:
        return self.margins.get(family, self.nats_margin if self.is_nats(family) else self.margin)

    def is_nats(self, family: str) -> bool:
        return family in self.spans

    def span_of(self, family: str) -> float:
        return self.spans.get(family, 1.0)
