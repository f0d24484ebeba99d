"""Reinforcement learning from self-feedback: what the model is sure of is preferred to what it is not, without any label.

RLSF (van Niekerk et al. 2025, arXiv 2507.21931) by its lighter path: preferences by confidence, learnt by DPO. The published
other one, a reward model and PPO, is not here. Since a model that is sure of what is wrong would only grow surer, a fit first
shows on labelled rows, none of which it trains on, that confidence predicts what is right.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import model_validator

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.lora import LoRA
from adapters.spec import Choices
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.budget import MAX_ANSWER_TOKENS
from engine.decoding.cot_decoding import Branch, CoTDecoding
from evaluation.errors import DataError
from evaluation.task import Example, Task, is_right, reasoning_prompt
from tuning.errors import BadRecipe
from tuning.methods.dpo import DPOSpec, Pair, run_dpo
from tuning.methods.method import Fit, Given, Method
from tuning.methods.supervised import identity_of
from tuning.rollouts import WRITER, has_begun, own_words, rollouts
from tuning.self_feedback import (
    FEW_GROUPS,
    LEAST,
    Branched,
    Preference,
    at_random,
    branched,
    calibration,
    counted,
    published,
    surest_over_least,
    trusted,
)
from tuning.trl_fit import only_lora, require_trl


class RLSFSpec(DPOSpec):
    """`preferences` random is the control: the same pairs, each turned round by a coin.

    `pairs` extremes takes the surest and the least sure branch of a question, if they answer differently and are `min_gap`
    apart; published is the paper's code: all branches of at least `threshold` over all that are less sure.
    """

    written_first: ClassVar[tuple[str, ...]] = ("num_questions", "num_labelled", "num_branches")

    name: Literal["rlsf"] = "rlsf"
    preferences: Literal["confidence", "random"] = "confidence"
    pairs: Annotated[Literal["extremes", "published"], Choices(("extremes", "published"))] = "extremes"
    num_branches: Annotated[int, Choices((5, 10))] = 5
    min_gap: float = 0.05
    threshold: float = 0.9
    num_questions: int = 128
    num_labelled: int = 64  # rows that confidence is held against, and that are not trained on
    min_auroc: float = 0.6
    max_trace_tokens: int = 96

    @model_validator(mode="after")
    def _branches(self) -> RLSFSpec:
        if min(self.num_questions, self.num_labelled, self.max_trace_tokens) < 1:
            raise ValueError(
                f"num_questions, num_labelled and max_trace_tokens must be at least 1, but got {self.num_questions}, "
                f"{self.num_labelled} and {self.max_trace_tokens}."
            )
        if self.num_labelled < LEAST:
            raise ValueError(
                f"Confidence is held against {LEAST} labelled rows or more, but got num_labelled = {self.num_labelled}. Take 64."
            )
        if not (0 < self.min_gap <= 1 and 0 <= self.threshold < 1 and 0.5 <= self.min_auroc < 1):
            raise ValueError(
                "RLSF needs 0 < min_gap <= 1, 0 <= threshold < 1 and 0.5 <= min_auroc < 1 (0.5 is chance), but got "
                f"{self.min_gap:g}, {self.threshold:g} and {self.min_auroc:g}."
            )
        _ = self.policy  # refuses numbers of branches that no engine lists
        return self

    @property
    def policy(self) -> CoTDecoding:
        return CoTDecoding(self.num_branches, self.max_trace_tokens)


class Parted(NamedTuple):
    """Rows of a training split, none of which is in both."""

    labelled: Sequence[Example]
    asked: Sequence[Example]


@dataclass(frozen=True)
class RLSF(Method):
    spec: RLSFSpec
    spec_type = RLSFSpec
    kinds = frozenset({"lora"})

    def check(self, examples: Sequence[Example], task: Task) -> None:
        parted(examples, self.spec)

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        rows = parted(examples, self.spec)
        check_room(backbone, [*rows.labelled, *rows.asked], self.spec)

    def fitted(self, given: Given) -> Fit:
        started, spec, lora, task = time.monotonic(), self.spec, the_lora(given.adapters), self.required(given.task)
        backbone, directory = given.backbone, given.directory
        require_trl(spec.name)
        rows = parted(given.examples, spec)
        self.check_room(backbone, given.examples)
        begun = has_begun(backbone, [lora])
        kept = own_words(backbone, "rlsf") if directory and not begun else _of(directory, "begun", lora)
        with rollouts(backbone, [lora] if begun else [], kept, given.alive) as writer:
            profile = WRITER if begun else None
            labelled = branched(writer, backbone, spec.policy, rows.labelled, profile)
            found = trusted(task, labelled, spec.min_auroc)
            asked = branched(writer, backbone, spec.policy, rows.asked, profile)
            num_generated, num_new = writer.num_used, writer.num_generated
        preferences = preferred(asked, spec)
        counts = {
            "labelled": len(labelled),
            "auroc": found.auroc,
            "auroc_low": found.low,
            **({} if found.within is None else {"auroc_within_question": found.within}),
            **counted(asked, preferences),
            "chosen_right": _share_right(task, preferences, "chosen"),
            "rejected_right": _share_right(task, preferences, "rejected"),
            **calibration(task, labelled, "before"),
        }
        pairs = [pair_of(backbone, one) for one in preferences]
        counts["prepare_s"] = time.monotonic() - started
        identity = identity_of(backbone, [lora], spec, pairs) if directory else ""
        done = run_dpo(backbone, lora, spec, pairs, given.on_step, given.on_update, directory, identity, num_generated)
        with rollouts(backbone, [lora], _of(directory, "fitted", lora), given.alive) as writer:
            counts |= calibration(task, branched(writer, backbone, spec.policy, rows.labelled, WRITER), "after")
            # No step learns from them, and so they stand beside the budget; but they were written for this fit.
            counts |= {"written_after": writer.num_used, "written_anew": num_new + writer.num_generated}
            num_generated += writer.num_used
        numbers = {name: tuple(values) for name, values in done.numbers.items()}
        return Fit(numbers, done.num_tokens, done.seconds, num_generated, counts)


def parted(examples: Sequence[Example], spec: RLSFSpec) -> Parted:
    """Whole groups drawn by the seed are labelled, as many as hold the rows; single rows, where the groups are few.

    Few groups are fixed templates, and how sure the model may be on some of them says nothing about the others: both parts need
    rows of each. DataError where nothing is left to ask.
    """
    num_groups = len({example.group for example in examples})
    units: dict[str, list[Example]] = {}
    for example in examples:
        units.setdefault(example.group if num_groups >= FEW_GROUPS else example.id, []).append(example)
    labelled, held = list[Example](), set[str]()
    for unit in random.Random(f"labelled/{spec.seed}").sample(sorted(units), len(units)):
        if len(labelled) < spec.num_labelled:
            labelled += units[unit]
            held |= {example.id for example in units[unit]}
    asked = [example for example in examples if example.id not in held]
    if len(labelled) < spec.num_labelled or not asked:
        raise DataError(
            f"RLSF keeps {spec.num_labelled} labelled rows apart from those that it asks, by whole groups if there are "
            f"{FEW_GROUPS}, but the {len(examples)} rows of {num_groups} groups leave {len(asked)} to ask. Lower "
            "method.num_labelled, or give more rows (method.num_examples) or groups."
        )
    return Parted(labelled[: spec.num_labelled], asked[: spec.num_questions])


def preferred(asked: Sequence[Branched], spec: RLSFSpec) -> list[Preference]:
    """Raises DataError where no question gives a pair."""
    found = [
        one
        for question in asked
        for one in (
            surest_over_least(question, spec.min_gap) if spec.pairs == "extremes" else published(question, spec.threshold)
        )
    ]
    if not found:
        counts, extremes = counted(asked, found), spec.pairs == "extremes"
        rule = f"a gap of {spec.min_gap:g}" if extremes else f"a confidence of {spec.threshold:g}"
        raise DataError(
            f"RLSF learns from two branches of a question of which one is surer, but none of {len(asked)} questions gave a pair: "
            f"in {counts['questions_alike']:g} the surest and the least sure answer alike, and "
            f"{counts['questions_without_gap']:g} are without {rule}. Lower method.{'min_gap' if extremes else 'threshold'}, or "
            "take more branches (method.num_branches) or harder questions."
        )
    return at_random(found, spec.seed) if spec.preferences == "random" else found


def pair_of(backbone: Backbone, preference: Preference) -> Pair:
    end = int(backbone.tokenizer.eos_token_id)
    chosen, rejected = ((*backbone.encode(branch.text), end) for branch in (preference.chosen, preference.rejected))
    return Pair(preference.asked.prompt_ids, chosen, rejected)


def the_lora(adapters: Sequence[Adapter]) -> LoRA:
    lora = only_lora(adapters)
    if lora is None:
        raise BadRecipe(
            f"The method 'rlsf' fits one LoRA, but was given {len(adapters)} adapters or another kind. Give one LoRA."
        )
    return lora


def check_room(backbone: Backbone, examples: Sequence[Example], spec: RLSFSpec) -> None:
    lengths = {example.id: len(backbone.chat_ids(reasoning_prompt(example))) for example in examples}
    name = max(lengths, key=lambda name: lengths[name])
    room = spec.max_trace_tokens + len(backbone.encode(f"\n{ANSWER_CUE}")) + MAX_ANSWER_TOKENS
    if lengths[name] + room > backbone.context_length:
        raise DataError(
            f"A question leaves room for a trace and an answer, {room} tokens of the {backbone.context_length} that "
            f"{backbone.name!r} reads, but {name!r} has {lengths[name]}. Lower method.max_trace_tokens, or leave out rows "
            "that are so long."
        )


def _of(directory: Path | None, purpose: str, lora: LoRA) -> Path | None:
    """Where what these very weights write is kept."""
    return directory / f"{purpose}-{lora.digest()[:16]}" if directory else None


def _share_right(task: Task, preferences: Sequence[Preference], side: Literal["chosen", "rejected"]) -> float:
    branches: list[tuple[Example, Branch]] = [(one.asked.example, getattr(one, side)) for one in preferences]
    return fmean(is_right(task, example, branch.text) for example, branch in branches)
