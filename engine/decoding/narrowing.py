"""What one request may change of its release's decoding policy: it narrows it, and never asks for more than the gate has seen.

Narrower is: a weaker penalty over a shorter window, fewer tokens, a smaller minimum, fewer ignored ends, a gentler ramp. A cap
may also be set where the release has none. What is left out stays as the release has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from adapters.spec import Spec
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.decoding.tracing import Tracing
from engine.errors import NotNarrower
from engine.profile import DecodingPolicy

_MOST = 10**9  # of tokens and the like: an integer of a request may be too large for a float


def _no_boolean(value: object) -> object:
    """JSON's true is no number, though Python reads it as 1."""
    if isinstance(value, bool):
        raise ValueError(f"it is a number, but got {str(value).lower()}")
    return value


AtLeast0 = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0)]
CountFrom0 = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=_MOST)]
CountFrom1 = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=_MOST)]
# What a schedule of the penalty reads.
_READ: Mapping[str, tuple[str, ...]] = {"window": ("alpha", "beta"), "const": ("alpha",), "cyclic": ("amplitude",)}


class TipNarrowing(Spec):
    alpha: AtLeast0 | None = None
    beta: CountFrom0 | None = None
    amplitude: AtLeast0 | None = None

    def of(self, tip: SwitchPenalty | None) -> SwitchPenalty | None:
        asked = self.model_dump(exclude_none=True)
        if tip is None and any(asked.values()):
            raise NotNarrower(f"A request may only weaken its release's `tip`, but asks for {asked} and the release has none.")
        if tip is None:
            return None
        unread = sorted(set(asked) - set(_READ[tip.schedule]))
        if unread:
            raise NotNarrower(
                f"The release's `tip` has the schedule {tip.schedule!r}, which does not read {', '.join(unread)}. "
                f"Give {' or '.join(_READ[tip.schedule])}."
            )
        _refuse_more("tip", asked, tip)
        return None if asked and not any(asked.values()) else tip.model_copy(update=asked)


class BudgetNarrowing(Spec):
    max_trace_tokens: CountFrom0 | None = None
    min_trace_tokens: CountFrom0 | None = None
    num_ignored_ends: CountFrom0 | None = None
    max_answer_tokens: CountFrom1 | None = None
    ramp: AtLeast0 | None = None

    def of(self, budget: Budget | None) -> Budget | None:
        asked = self.model_dump(exclude_none=True)
        if not asked:
            return budget
        # Where the release sets no cap, any cap is a narrower one, and so is a limit of the answer where it has no budget.
        open_caps = {"max_trace_tokens"} if budget is None or budget.max_trace_tokens is None else set[str]()
        open_caps |= {"max_answer_tokens"} if budget is None else set[str]()
        budget = Budget() if budget is None else budget
        _refuse_more("budget", {name: value for name, value in asked.items() if name not in open_caps}, budget)
        narrowed = {**budget.model_dump(), **asked}
        cap = narrowed["max_trace_tokens"]
        if cap is not None:
            narrowed["min_trace_tokens"] = min(narrowed["min_trace_tokens"], cap)
        return Budget(**narrowed)


class TracingNarrowing(Spec):
    """Thought tracing is off unless a request asks for it, and it may ask only where the release declares that it follows."""

    num_hypotheses: Annotated[int, Field(ge=2, le=_MOST)] | None = None
    max_steps: CountFrom1 | None = None
    max_thought_tokens: Annotated[int, Field(ge=4, le=_MOST)] | None = None

    def of(self, tracing: Tracing | None) -> Tracing:
        if tracing is None:
            raise NotNarrower(
                "Thought tracing needs a backbone that follows its prompts, and this release's policy does not declare with "
                "`tracing` that its own does. Leave it out, or ask a release that declares it."
            )
        asked = self.model_dump(exclude_none=True)
        _refuse_more("tracing", asked, tracing)
        return tracing.model_copy(update=asked)


class Narrowing(Spec):
    """`tip`: false, or no strength, switches it off."""

    tip: TipNarrowing | None = None
    budget: BudgetNarrowing | None = None
    tracing: TracingNarrowing | None = None

    @field_validator("tracing", mode="before")
    @classmethod
    def _true_is_the_release_s(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @field_validator("tip", mode="before")
    @classmethod
    def _false_is_off(cls, value: object) -> object:
        return {"alpha": 0} if value is False else value

    def of(self, policy: DecodingPolicy) -> DecodingPolicy:
        """The narrowed policy; NotNarrower where it would be more than the policy."""
        return policy.model_copy(
            update={
                "tip": policy.tip if self.tip is None else self.tip.of(policy.tip),
                "budget": policy.budget if self.budget is None else self.budget.of(policy.budget),
                "tracing": None if self.tracing is None else self.tracing.of(policy.tracing),
            }
        )


def _refuse_more(part: str, asked: Mapping[str, float], allowed: Spec) -> None:
    for name, value in asked.items():
        most = getattr(allowed, name)
        if value > most:
            raise NotNarrower(
                f"A request may only narrow its release's policy, but asks for {part}.{name} {value:g} where the release has "
                f"{most:g}. Ask for that or less, or leave it out."
            )
