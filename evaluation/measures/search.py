"""Systematic search: how fast accuracy decays with depth (Lu et al. 2025, arXiv 2505.20296, section 3).

A searcher that keeps each needed branch with probability q solves a problem of depth d with one goal with probability q^(d-1).
So ln p falls by ln q a level, and q_w is read by least squares of ln p on d over a sweep of depths. What is lost at every depth
alike (a form that is not kept) goes into the intercept and not into q_w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.bootstrap import percentiles, with_zero
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.measures.traces import greedy_replies
from evaluation.measures.wandering import revisitation, self_loop, unfaithful
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, is_right, trace_of
from evaluation.tasks.generated import GeneratedTask

LEAST_DEPTHS = 3
LEAST_RIGHT = 0.10  # of all items, on the backbone; fewer have nothing to lose
LEAST_SHARE = 0.25  # of the items at the least depth that must be right for a decay to be read
CONFIDENCE = 0.95
WANDERING = ("revisitation", "self_loop", "unfaithful")


@dataclass(frozen=True)
class SystematicSearch:
    """1 when every step is right and in its place and so is the answer, else 0, over a sweep of depths.

    Parts: `depth`, `answer_right`, `step_validity`, `answered`, and the wandering rates (NaN where they cannot be read). The
    summary has accuracy at every depth and q_w of both sides, the change of q_w and of each rate, with 95 % intervals.

    Not measurable where the backbone is right on less than 10 % of the items.
    """

    max_new_tokens: int = 256
    name: str = "systematic_search"
    version: int = 2
    unit: str = "share right in every step"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if not isinstance(task, GeneratedTask):
            raise DataError(
                f"Systematic search needs a generated task, whose depth is known, but {task.name!r} is none. Use one."
            )
        depths = [float(task.length(example.id)) for example in examples]
        if len(set(depths)) < LEAST_DEPTHS:
            raise DataError(
                f"Systematic search is read over {LEAST_DEPTHS} depths or more, but the items of {task.name!r} have "
                f"{sorted(set(depths))}: a single one sits on a plateau or on the floor. Ask for more lengths, or more items."
            )
        replies = [completion.text for completion in greedy_replies(engine, backbone, profile, examples, self.max_new_tokens)]
        traces = [trace_of(reply) for reply in replies]
        checks = [task.check(example, reply) for example, reply in zip(examples, replies, strict=True)]
        both = list(zip(examples, traces, strict=True))
        right = [float(check.all_right) for check in checks]
        share = sum(right) / len(right)
        reason = ""
        if profile is None and share < LEAST_RIGHT:
            reason = (
                f"the backbone is right on {share:.0%} of the problems of {task.name}: less than {LEAST_RIGHT:.0%} shows no loss"
            )
        return Readings.of(
            self,
            task,
            examples,
            [math.nan] * len(right) if reason else right,
            {
                "depth": depths,
                "answer_right": [float(is_right(task, example, reply)) for example, reply in zip(examples, replies, strict=True)],
                "step_validity": [check.validity for check in checks],
                "answered": [float(check.answered) for check in checks],
                "revisitation": [revisitation(trace.steps, example.steps) for example, trace in both],
                "self_loop": [self_loop(trace.steps) for trace in traces],
                "unfaithful": [unfaithful(task, example, trace.steps, trace.answer) for example, trace in both],
            },
            reason=reason,
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """None where fewer than a quarter of the items at the least depth are right: at the floor no decay can be read."""
        if base.reason or adapted.reason:
            return {}
        found: dict[str, float | None] = {}
        depths = np.asarray(base.parts["depth"])
        before, after = np.asarray(base.values), np.asarray(adapted.values)
        for side, right in (("base", before), ("adapted", after)):
            found |= {f"{side}_p_{depth:.0f}": float(right[depths == depth].mean()) for depth in np.unique(depths)}
            found[f"{side}_q_w"] = _known(decay(depths, right))
        found["q_w_change"] = _known(decay(depths, after) - decay(depths, before))
        found["q_w_low"], found["q_w_high"] = interval(depths, before, after)
        for name in WANDERING:
            found |= _changed(name, base, adapted)
        return found


def decay(depths: np.ndarray, right: np.ndarray) -> float:
    """q_w: the factor by which the share of right items falls a level; 1 is no decay. NaN at the floor.

    Levels beyond the first at which nothing is right say no more, and would flatten the slope: they are left out, and that first
    one counts as half an item right.
    """
    levels = np.unique(depths)
    shares = np.array([right[depths == level].mean() for level in levels])
    if shares[0] < LEAST_SHARE:
        return math.nan
    lost = np.flatnonzero(shares == 0)
    end = int(lost[0]) + 1 if len(lost) else len(levels)
    counts = np.array([(depths == level).sum() for level in levels])
    used = np.where(shares > 0, shares, 0.5 / counts)[:end]
    return float(np.exp(stats.linregress(levels[:end], np.log(used)).slope))


def interval(depths: np.ndarray, before: np.ndarray, after: np.ndarray, draws: int = 500) -> tuple[float | None, float | None]:
    """Of the change of q_w: items are drawn within each depth, the same on both sides. A draw at the floor is left out.

    None where the items of every depth agree, so that all draws are one and bound nothing.
    """

    def change(index: np.ndarray) -> float:
        return decay(depths[index], after[index]) - decay(depths[index], before[index])

    if math.isnan(change(np.arange(len(depths)))):
        return None, None
    if not (after - before).any():
        return 0.0, 0.0
    rng, places = np.random.default_rng(0), [np.flatnonzero(depths == level) for level in np.unique(depths)]
    drawn = [change(np.concatenate([rng.choice(place, len(place)) for place in places])) for _ in range(draws)]
    found = percentiles(np.asarray(drawn)[~np.isnan(drawn)], CONFIDENCE, "percentile")
    if found.low == found.high:
        return None, None
    found = with_zero(found, int(np.count_nonzero(after - before)), CONFIDENCE)
    return found.low, found.high


def _changed(name: str, base: Readings, adapted: Readings) -> dict[str, float | None]:
    """Of a rate, over the items where both sides have it."""
    before, after = base.parts[name], adapted.parts[name]
    both = [i for i in range(len(before)) if not math.isnan(before[i]) and not math.isnan(after[i])]
    if not both:
        return {f"{name}_change": None, f"{name}_low": None, f"{name}_high": None}
    change = paired_change([before[i] for i in both], [after[i] for i in both], [base.clusters[i] for i in both])
    return {f"{name}_change": change.mean, f"{name}_low": change.low, f"{name}_high": change.high}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
