"""What a search of the decoding policy varies, between which bounds, and on how many items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import Field, ValidationError, field_validator

from adapters.spec import Choices, Range, Spec
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from tuning.errors import BadRecipe
from tuning.faults import in_one_sentence
from tuning.methods.compression import CompressionMethodSpec

LAYER, EPS = "steering.layer", "steering.eps"
FRACTIONAL = frozenset({"tip.alpha", "tip.amplitude", "budget.ramp", EPS})  # the others are whole numbers
# By kind, the fields that are drawn when it is on.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "budget": ("budget.max_trace_tokens",),
    "ramp": ("budget.ramp",),
    "minimum": ("budget.min_trace_tokens", "budget.num_ignored_ends"),
    "tip": ("tip.alpha", "tip.beta"),
    "cyclic": ("tip.amplitude", "tip.period"),
    "branches": ("branches.num_branches",),
    "steering": (EPS, LAYER),
}
KINDS = tuple(FIELDS)
# A minimum and branches cost tokens, and each further dimension costs trials: these are searched when they are asked for.
USUAL = ("budget", "tip", "steering")


def _marks() -> dict[str, Range]:
    """The ranges that stand in the specs, by dotted field; a layer is chosen among those that a vector was made for."""
    budget, tip = Budget.search_space(), SwitchPenalty.search_space()
    own = {"budget": budget, "tip": tip, "steering": {"eps": CompressionMethodSpec.search_space()["eps"]}}
    own["branches"] = Branches.search_space()
    found: dict[str, Range] = {}
    for field in (field for fields in FIELDS.values() for field in fields if field != LAYER):
        part, _, name = field.partition(".")
        mark: Range | Choices = own[part][name]
        assert isinstance(mark, Range)
        found[field] = mark
    return found


RANGES: Mapping[str, Range] = _marks()


class DecodingSearch(Spec):
    """`items` of the domain choose, and as many others confirm; so do `family_items` of every protected family.

    `kinds`: None is the usual ones, as far as the release and the engine have them. `tolerance` is the accuracy that fewer
    tokens may cost, shown by the lower end of the interval. `ranges` are narrower than the specs' own.
    """

    kinds: tuple[str, ...] | None = None
    trials: int = Field(default=24, ge=2)
    time_budget_s: float | None = Field(default=None, gt=0)
    items: int = Field(default=100, ge=8)
    family_items: int = Field(default=24, ge=8)
    max_new_tokens: int = Field(default=128, ge=16)
    tolerance: float = Field(default=0.05, ge=0, le=1)
    ranges: dict[str, tuple[float, float]] = {}
    seed: int = 0

    @field_validator("kinds")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or set(value) - set(KINDS)):
            raise ValueError(f"What is searched is one or more of {', '.join(KINDS)}, but got {', '.join(value) or 'nothing'}.")
        if value is not None and "ramp" in value and "budget" not in value:
            raise ValueError(f"A ramp rises up to a cap that is searched, but got {', '.join(value)}. Name budget beside ramp.")
        return None if value is None else tuple(kind for kind in KINDS if kind in value)

    @field_validator("ranges")
    @classmethod
    def _inside(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for field, (low, high) in value.items():
            mark = RANGES.get(field)
            if mark is None:
                raise ValueError(f"A range is of one of {', '.join(RANGES)}, but got {field!r}.")
            if field not in FRACTIONAL and not (low.is_integer() and high.is_integer()):
                raise ValueError(f"The range of {field} is between whole numbers, but got {low:g} to {high:g}.")
            if not mark.low <= low <= high <= mark.high:
                raise ValueError(
                    f"The range of {field} is low to high inside [{mark.low:g}, {mark.high:g}], but got {low:g} to {high:g}."
                )
        return value

    def range_of(self, field: str) -> Range:
        low, high = self.ranges.get(field, (RANGES[field].low, RANGES[field].high))
        return Range(low, high, RANGES[field].log)

    def digest(self, *subject: str) -> str:
        """Of what must not change between the trials of one study: everything but its length, and the subject beside it."""
        fields = self.model_dump(mode="json", exclude={"trials", "time_budget_s"})
        return hashlib.sha256(json.dumps([fields, *subject], sort_keys=True).encode()).hexdigest()


def settings_of(values: Mapping[str, object], ranges: Sequence[str]) -> DecodingSearch:
    """From a command line: fields that are None keep their defaults, a range is FIELD=LOW:HIGH. BadRecipe in one sentence."""
    try:
        given = {key: value for key, value in values.items() if value is not None}
        return DecodingSearch.model_validate({**given, "ranges": dict(map(_parsed, ranges))})
    except ValidationError as error:
        raise BadRecipe(f"The search of a decoding policy: {in_one_sentence(error)}") from error


def _parsed(text: str) -> tuple[str, tuple[float, float]]:
    field, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        return field.strip(), (float(low), float(high))
    except ValueError as error:
        raise BadRecipe(f"A range is FIELD=LOW:HIGH, but got {text!r}. Try budget.max_trace_tokens=8:64.") from error
