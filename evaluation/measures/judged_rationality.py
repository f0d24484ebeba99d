"""Explanation rationality as a judge scores it, by the same rubric as the likelihood forms, and beside them.

A judge is looked at before it is believed: it must find a gold trace more relevant to its own question than another item's, with
the interval clear of 0, or nothing is measurable by it. Its agreement with the likelihood forms is always reported; agreement
with people, which needs labelled items, is not claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.judge import Asked, Judge
from evaluation.measure import Readings
from evaluation.measures.information_gain import swaps
from evaluation.measures.rationality import likelihood_forms, written
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, Trace, answer_line, question_text

CONTROLLED = "relevance"  # what another item's trace must lose
LEAST_ITEMS = 8


@dataclass(frozen=True)
class JudgedRationality:
    """The rubric's rule over a judge's scores, each as a share of the scale; an item with an unreadable reply is not measurable.

    Parts: judged_X and X, the judge's score and the likelihood form of every criterion X; unparsed, the share of an item's
    replies that could not be read; control_own and control_swapped, the relevance of a gold trace and of another item's in its
    place.
    """

    judge: Judge
    name: str = "judged_rationality"
    unit: str = "share of the scale"

    @property
    def version(self) -> int:
        return self.judge.rubric.version

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        traces = written(engine, backbone, profile, examples)
        forms = likelihood_forms(engine, backbone, task, examples, traces)
        criteria = self.judge.rubric.criteria
        explained = [index for index, trace in enumerate(traces) if trace.steps and trace.answer]
        asked = [Asked(c, question_text(examples[index]), explanation(traces[index])) for index in explained for c in criteria]
        verdicts = iter(self.judge.verdicts(asked))
        scores = {index: {c.name: next(verdicts).score for c in criteria} for index in explained}
        own, swapped = self._control(examples)
        reason = _unfit(own, swapped, examples)
        values, parts = [], []
        for index, form in enumerate(forms):
            known = {name: self._share(score) for name, score in scores.get(index, {}).items()}
            unread = any(map(math.isnan, known.values()))
            values.append(math.nan if reason or unread else self.judge.rubric.combined(known) if known else 0.0)
            parts.append(
                {
                    **{f"judged_{c.name}": known.get(c.name, math.nan) for c in criteria},
                    **{c.name: form[c.name] for c in criteria},
                    "unparsed": sum(map(math.isnan, known.values())) / len(criteria) if known else math.nan,
                    "control_own": own[index],
                    "control_swapped": swapped[index],
                }
            )
        return Readings.of(
            self, task, examples, values, {name: tuple(part[name] for part in parts) for name in parts[0]}, reason=reason
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Of each criterion Spearman's rank correlation of judge and likelihood form, over both sides' traces; then the judge."""
        both = {name: (*base.parts[name], *adapted.parts[name]) for name in base.parts}
        found = {f"agreement_{c.name}": _correlation(both[f"judged_{c.name}"], both[c.name]) for c in self.judge.rubric.criteria}
        return found | {
            "unparsed": _mean(both["unparsed"]),
            "control_own": _mean(both["control_own"]),
            "control_swapped": _mean(both["control_swapped"]),
        }

    def _control(self, examples: Sequence[Example]) -> tuple[list[float], list[float]]:
        """The judged relevance of gold traces, and of a trace of like length in the place of each; NaN where there is none."""
        criterion = next(c for c in self.judge.rubric.criteria if c.name == CONTROLLED)
        golds = [example for example in examples if example.steps]
        nothing = dict.fromkeys((example.id for example in examples), math.nan)
        if len(golds) < 2:
            return list(nothing.values()), list(nothing.values())
        partners = swaps([example.steps for example in golds], [example.answer for example in golds])
        asked = [
            Asked(criterion, question_text(gold), explanation(Trace(steps, gold.answer, ())))
            for gold, partner in zip(golds, partners, strict=True)
            for steps in (gold.steps, golds[partner].steps)
        ]
        scores = [self._share(verdict.score) for verdict in self.judge.verdicts(asked)]
        found = (nothing | dict(zip((gold.id for gold in golds), side, strict=True)) for side in (scores[::2], scores[1::2]))
        own, swapped = ([side[example.id] for example in examples] for side in found)
        return own, swapped

    def _share(self, score: int | None) -> float:
        return math.nan if score is None else self.judge.rubric.share(score)


def explanation(trace: Trace) -> str:
    """As the judge reads it: one step a line, then the answer line."""
    return "\n".join((*trace.steps, answer_line(trace.answer or "")))


def _unfit(own: Sequence[float], swapped: Sequence[float], examples: Sequence[Example]) -> str:
    """Why this judge measures nothing here; empty when it passed."""
    if not any(example.steps for example in examples):
        return "there is no gold trace to try the judge on"
    pairs = [(a, b, e.group) for a, b, e in zip(own, swapped, examples, strict=True) if not math.isnan(a + b)]
    if len(pairs) < LEAST_ITEMS:
        return f"the judge gave readable scores for {len(pairs)} pairs of a trace and its swap, not for {LEAST_ITEMS}"
    right, wrong, groups = zip(*pairs, strict=True)
    found = paired_change(wrong, right, groups)
    if found.low > 0:
        return ""
    return f"the judge does not tell a gold trace from another item's: {found} in relevance, as a share of the scale"


def _correlation(judged: Sequence[float], read: Sequence[float]) -> float | None:
    pairs = np.asarray([pair for pair in zip(judged, read, strict=True) if not math.isnan(sum(pair))])
    if len(pairs) < LEAST_ITEMS or any(len(set(column)) < 2 for column in pairs.T):
        return None  # of a constant there is no rank
    return float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
