"""What a gate asks for: margins, alpha, and how many items and how much time it may use."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FIRST = 0.9  # of alpha for the first gate of a release: the shares of all that may follow add up to the rest


class GateSettings(BaseModel):
    """Margins are losses that are tolerable, in the family's own units; `spans` are its largest possible differences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(default=0.02, gt=0, lt=1)
    margins: dict[str, float] = Field(default_factory=dict)  # by family, where it differs from `margin`
    pooled_margin: float | None = Field(default=None, gt=0, lt=1)  # None: no pooled test
    min_domain_gain: float = Field(default=0.0, ge=0, lt=1)  # the interval of the gain must lie above this
    alpha: float = Field(default=0.05, gt=0, lt=0.5)  # of promoting any candidate that should not be
    num_candidates: int = Field(default=1, ge=1, le=3)  # alpha is divided among them
    restarts: int = Field(default=0, ge=0)  # gates of this release that were begun before and cannot be continued
    time_budget_s: float = Field(default=3600.0, gt=0)
    round_items: int = Field(default=100, ge=1)  # a family and round
    max_rounds: int = Field(default=20, ge=1)
    stop_when_futile: bool = False  # give up once some test would need more than twice what is left
    spans: dict[str, float] = Field(default_factory=dict)  # 1.0 where none is given

    @model_validator(mode="after")
    def _margins_are_losses(self) -> GateSettings:
        for kind, values in (("margin", self.margins), ("span", self.spans)):
            for family, value in values.items():
                if value <= 0:
                    raise ValueError(f"A {kind} must be above 0, but that of {family!r} is {value}. Correct or remove it.")
        return self

    @property
    def candidate_alpha(self) -> float:
        """What this gate may spend: the first has 0.9 of the candidate's alpha, each later one a tenth of the one before."""
        return self.alpha / self.num_candidates * _FIRST * (1 - _FIRST) ** self.restarts

    def margin_of(self, family: str) -> float:
        return self.margins.get(family, self.margin)

    def span_of(self, family: str) -> float:
        return self.spans.get(family, 1.0)
