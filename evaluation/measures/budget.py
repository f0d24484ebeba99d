"""Accuracy by forced budget: what each further stretch of trace is worth (arXiv 2502.07266; arXiv 2506.04210).

The length is set, not observed: every trace is cut after b tokens, or, where the model ended it earlier, gone on with past that
end once; then the answer is forced. So one item is compared with itself, and hard items are no confounder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.backbone import Backbone
from engine.decoding.budget import WrittenTrace, extended, force_answers, write_traces
from engine.engine import Engine, GenerationRequest
from evaluation.bootstrap import FEW_CLUSTERS, Bounds, with_zero
from evaluation.measure import Readings
from evaluation.task import Example, Task, is_right_answer, reasoning_prompt

BUDGETS = (0, 16, 32, 64, 128)


@dataclass(frozen=True)
class BudgetAccuracy:
    """Share of the budgets at which the forced answer is right: the area under accuracy by budget, which are spaced like logs.

    Parts: `right_at_<b>`; `right_at_end`, after the trace as the model ended it, or after the largest budget where it did not;
    `cut`, 1 where it did not; `trace_tokens` up to that end; `extended_tokens` with what was written past it; `overthought`, of
    the items that are right at a budget below their own end, 1 where they are wrong at that end (else NaN); `underthought`, of
    the items that ended by themselves and are wrong there, 1 where a larger budget is right (else NaN). Where an answer can be
    guessed, both rates have a floor above 0: read them as changes. Not measurable where the backbone is right at no budget.
    """

    budgets: tuple[int, ...] = BUDGETS
    name: str = "budget"
    version: int = 2
    unit: str = "share right over the budgets"

    def __post_init__(self) -> None:
        if len(self.budgets) < 3 or min(self.budgets) < 0 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"Budgets are three or more token counts in rising order, but got {self.budgets}. Sort them.")

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if any("\n" in example.answer for example in examples):
            reason = "a forced answer is one line, and gold answers here take several"
            return Readings.of(self, task, examples, [math.nan] * len(examples), reason=reason)
        requests = [GenerationRequest(backbone.chat_ids(reasoning_prompt(e)), profile, temperature=0.0) for e in examples]
        ended = write_traces(engine, backbone, requests, self.budgets[-1])
        longest = extended(engine, backbone, requests, ended, self.budgets[-1])
        cuts = [[*(trace.cut(backbone, b) for b in self.budgets), end] for end, trace in zip(ended, longest, strict=True)]
        right = _right(engine, backbone, requests, cuts, task, examples)
        rows = [_row(self.budgets, *row) for row in zip(right, ended, longest, strict=True)]
        values = [sum(row[f"right_at_{b}"] for b in self.budgets) / len(self.budgets) for row in rows]
        # An adapter that is right nowhere has lost what the backbone had; a backbone that is has nothing to lose.
        nothing = profile is None and not any(values)
        return Readings.of(
            self,
            task,
            examples,
            [math.nan] * len(values) if nothing else values,
            {name: [row[name] for row in rows] for name in rows[0]},
            reason="the backbone's forced answer is right at no budget" if nothing else "",
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """b* of both sides and its change in tokens, with 95 % intervals; None where accuracy is the same at every budget."""
        curves = [np.array([side.parts[f"right_at_{b}"] for b in self.budgets]).T for side in (base, adapted)]
        found: dict[str, float | None] = {}
        for name, intervals in peaks(self.budgets, curves[0], curves[1], base.clusters).items():
            found |= dict(zip((name, f"{name}_low", f"{name}_high"), intervals, strict=True))
        return found


def _right(
    engine: Engine,
    backbone: Backbone,
    requests: Sequence[GenerationRequest],
    cuts: Sequence[Sequence[WrittenTrace]],
    task: Task,
    examples: Sequence[Example],
) -> list[list[float]]:
    """Whether each item's forced answer is right after each of its traces; equal traces of an item are asked once."""
    asked = {(item, trace.ids): trace for item, traces in enumerate(cuts) for trace in traces}
    answers = force_answers(engine, backbone, [requests[item] for item, _ in asked], list(asked.values()))
    said = {key: is_right_answer(task, examples[key[0]], answer.text) for key, answer in zip(asked, answers, strict=True)}
    return [[float(said[item, trace.ids]) for trace in traces] for item, traces in enumerate(cuts)]


def _row(budgets: Sequence[int], right: Sequence[float], end: WrittenTrace, longest: WrittenTrace) -> dict[str, float]:
    at_end, own = right[-1], len(end.ids)
    before = [found for b, found in zip(budgets, right, strict=False) if b < own]
    beyond = [found for b, found in zip(budgets, right, strict=False) if b > own]
    return {
        **{f"right_at_{b}": found for b, found in zip(budgets, right, strict=False)},
        "right_at_end": at_end,
        "cut": float(not end.has_ended),
        "trace_tokens": float(own),
        "extended_tokens": float(len(longest.ids)),
        "overthought": 1 - at_end if any(before) else math.nan,
        "underthought": float(any(beyond)) if end.has_ended and not at_end and beyond else math.nan,
    }


def peak(budgets: Sequence[int], accuracy: np.ndarray) -> float:
    """b*, in tokens: where the least-squares parabola over ln(1 + b) is highest between the ends; NaN for a flat curve."""
    if np.ptp(accuracy) == 0:
        return math.nan
    logs = np.log1p(budgets)
    fitted = np.poly1d(np.polyfit(logs, accuracy, 2))
    turning = -fitted[1] / (2 * fitted[2]) if fitted[2] else logs[0]
    places = [place for place in (logs[0], logs[-1], turning) if logs[0] <= place <= logs[-1]]
    return round(float(np.expm1(max(places, key=fitted))), 6)  # an end of the range is just that end


Interval = tuple[float | None, float | None, float | None]


def peaks(
    budgets: Sequence[int], base: np.ndarray, adapted: np.ndarray, clusters: Sequence[str], draws: int = 500
) -> dict[str, Interval]:
    """`base_peak`, `adapted_peak` and `peak_change` with the ends of their 95 % percentile intervals, all in tokens.

    `base` and `adapted` are [items, budgets], 1 where right. Whole clusters are drawn where there are ten or more, else items,
    the same on both sides. A draw whose curve is flat has no peak and is left out.
    """
    _, unit = np.unique(np.asarray(clusters), return_inverse=True)
    unit = unit if unit.max() + 1 >= FEW_CLUSTERS else np.arange(len(base))
    members = [np.flatnonzero(unit == one) for one in range(unit.max() + 1)]

    def found(drawn: np.ndarray) -> np.ndarray:
        index = np.concatenate([members[int(one)] for one in drawn])
        before, after = peak(budgets, base[index].mean(0)), peak(budgets, adapted[index].mean(0))
        return np.array([before, after, after - before])

    rng = np.random.default_rng(0)
    whole = found(np.arange(len(members)))
    drawn = np.array([found(rng.integers(0, len(members), len(members))) for _ in range(draws)]).T
    names = ("base_peak", "adapted_peak", "peak_change")
    ends = {name: _interval(value, row) for name, value, row in zip(names, whole, drawn, strict=True)}
    value, low, high = ends["peak_change"]
    if low is not None and high is not None:
        moved = sum(bool((base[index] != adapted[index]).any()) for index in members)
        wide = with_zero(Bounds(low, high, "percentile"), moved, 0.95)
        ends["peak_change"] = value, wide.low, wide.high
    return ends


def _interval(value: float, drawn: np.ndarray) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(known):
        return None, None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(value), float(low), float(high)
