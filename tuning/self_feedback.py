"""A model's own confidence as feedback: branches of a reply, whether their confidence can be trusted, and preferences by it.

After RLSF (van Niekerk et al. 2025, arXiv 2507.21931). Branches come from CoT-decoding; a branch is as sure as the tokens of its
answer, by the mean difference of the two largest probabilities. A branch that answers nothing is neither judged nor preferred.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean
from typing import NamedTuple

from adapters.backbone import Backbone
from engine.decoding.cot_decoding import Branch, CoTDecoding, Decoded
from engine.engine import Completes, GenerationRequest
from evaluation.discrimination import Discrimination, discrimination
from evaluation.errors import DataError
from evaluation.reliability import excess_calibration_error, murphy
from evaluation.task import Example, Task, is_right, reasoning_prompt, same_answer

LEAST = 8  # rows with a right branch, and rows with a wrong one, below which an interval of the AUROC means nothing
FEW_GROUPS = 10  # below as many, groups are fixed templates, and rows are what is drawn


@dataclass(frozen=True)
class Branched:
    """A question and its branches."""

    example: Example
    prompt_ids: tuple[int, ...]
    decoded: Decoded

    @property
    def extremes(self) -> tuple[Branch, Branch] | None:
        """The surest branch and the least sure one; None where they answer alike, or there are no two."""
        by_margin = sorted(self.decoded.answered, key=lambda branch: branch.margin)
        if len(by_margin) < 2 or same_answer(by_margin[-1].answer, by_margin[0].answer):
            return None
        return by_margin[-1], by_margin[0]


class Preference(NamedTuple):
    asked: Branched
    chosen: Branch
    rejected: Branch


def branched(
    engine: Completes, backbone: Backbone, policy: CoTDecoding, examples: Sequence[Example], profile: str | None = None
) -> list[Branched]:
    prompts = [backbone.chat_ids(reasoning_prompt(example)) for example in examples]
    decoded = policy.complete(engine, backbone, [GenerationRequest(prompt_ids, profile) for prompt_ids in prompts])
    return [Branched(example, prompt_ids, one) for example, prompt_ids, one in zip(examples, prompts, decoded, strict=True)]


def trusted(task: Task, labelled: Sequence[Branched], min_auroc: float) -> Discrimination:
    """How well confidence tells right branches from wrong ones. DataError unless its lower bound is above `min_auroc`."""
    judged = [
        (asked.example, branch.margin, is_right(task, asked.example, branch.text))
        for asked in labelled
        for branch in asked.decoded.answered
    ]
    rows = {kind: len({example.id for example, _, right in judged if right == kind}) for kind in (True, False)}
    if min(rows.values()) < LEAST:
        ways = (
            "nothing is left to learn: take harder rows"
            if rows[False] < rows[True]
            else "fit the domain by sft first and continue that adapter (adapter.warm_start)"
        )
        raise DataError(
            f"RLSF must see on labelled rows that confidence predicts what is right, which takes {LEAST} rows with a right "
            f"branch and {LEAST} with a wrong one, but of {len(labelled)} rows {rows[True]} and {rows[False]} have one. Label "
            f"more (method.num_labelled), or {ways}."
        )
    by_group = len({asked.example.group for asked in labelled}) >= FEW_GROUPS
    clusters = [example.group if by_group else example.id for example, _, _ in judged]
    found = discrimination([said for _, said, _ in judged], [right for *_, right in judged], clusters)
    if found.low <= min_auroc:
        raise DataError(
            f"RLSF rewards what the model is sure of, so that confidence must predict what is right: on labelled rows the lower "
            f"end of the 95 % interval of its AUROC must be above {min_auroc:g}, but it is {found.low:.2f} (AUROC "
            f"{found.auroc:.2f} on {len(judged)} branches of {len(labelled)} rows). Label more rows (method.num_labelled) if "
            "the AUROC itself is above, fit the domain by sft first and continue that adapter (adapter.warm_start), or take a "
            "method that goes by the answer (star, rlvr)."
        )
    return found


def calibration(task: Task, labelled: Sequence[Branched], when: str) -> dict[str, float]:
    """Of the greedy branches: accuracy, mean confidence, Brier score and excess calibration error. No answer is confidence 0."""
    greedy = [(asked.example, asked.decoded.greedy) for asked in labelled]
    confidence = [branch.margin if branch.is_answered else 0.0 for _, branch in greedy]
    right = [float(is_right(task, example, branch.text)) for example, branch in greedy]
    return {
        f"accuracy_{when}": fmean(right),
        f"confidence_{when}": fmean(confidence),
        f"brier_{when}": murphy(confidence, right).brier,
        f"calibration_error_{when}": excess_calibration_error(confidence, right),
    }


def surest_over_least(asked: Branched, min_gap: float) -> list[Preference]:
    """Where the two answer differently and are as far apart."""
    found = asked.extremes
    return [Preference(asked, *found)] if found and found[0].margin - found[1].margin >= min_gap else []


def published(asked: Branched, threshold: float) -> list[Preference]:
    """Every branch that is as sure as the threshold over every one that is less sure, whatever they answer."""
    return [
        Preference(asked, one, other)
        for one, other in permutations(asked.decoded.answered, 2)
        if one.margin > other.margin and one.margin >= threshold
    ]


def at_random(preferences: Sequence[Preference], seed: int) -> list[Preference]:
    """The same pairs, each turned round by a coin of its own: the control."""
    return [
        one._replace(chosen=one.rejected, rejected=one.chosen)
        if random.Random(f"sign/{seed}/{one.asked.example.id}/{place}").random() < 0.5
        else one
        for place, one in enumerate(preferences)
    ]


def counted(asked: Sequence[Branched], preferences: Sequence[Preference]) -> dict[str, float]:
    """What the questions gave: those without a pair answer alike, or are not sure enough of one answer over the other."""
    paired = {one.asked.example.id for one in preferences}
    unpaired = [one for one in asked if one.example.id not in paired]
    alike = sum(one.extremes is None for one in unpaired)
    return {
        "questions": len(asked),
        "pairs": len(preferences),
        "questions_without_gap": len(unpaired) - alike,
        "questions_alike": alike,
        "branches_without_answer": sum(len(one.decoded.branches) - len(one.decoded.answered) for one in asked),
    }
