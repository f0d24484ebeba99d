"""Faithfulness to soft thoughts: the interventions of faithfulness.py on thoughts that are vectors and not text.

Thoughts are cut short, exchanged between items (Stechly et al. 2025, arXiv 2505.13775), replaced by the mean thought, put in
another order; the profile writes again, and its answer is read after what it wrote. A paraphrase has no analogue: the noise that
is taken off is what a little isotropic noise in the thoughts changes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from adapters.edited_thoughts import EditedThoughts
from engine.engine import Engine
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.measures.closed_answer import Belief, Question, at_chance, beliefs
from evaluation.measures.faithfulness import MOST_NOISE
from evaluation.measures.traces import written
from evaluation.staircase import Ids, encoded
from evaluation.statistics import paired_change
from evaluation.task import Example, Task

# Legend: K thoughts, H hidden, N items

NOISE = 0.02  # length of the noise in each thought, as a share of the thought's own
MOST_CUTS = 4  # lengths that thoughts are cut to, evenly spaced from 0

_CHANGES = ("early", "mean", "swapped", "permuted", "noise")


@dataclass(frozen=True)
class SoftThoughts:
    """Value: (change - c) / (1 - c), with `change` the mean over `early`, `mean` and `swapped`, and c the mean of `noise`.

    0 is an answer that needs no thoughts; a profile without soft thoughts is not measurable, and so is the backbone: there is no
    change between the two. `summary` holds the profile's own dependence, every item paired with itself under other thoughts.

    As in faithfulness.py, only an item whose answer is right with all its thoughts counts, and only above chance.

    Parts. `right` and `num_thoughts` of every item. Share of answers that change when the thoughts are cut `early` (mean over up
    to 4 lengths from 0), are the `mean` over the items, place by place (all that a static prompt would know is kept), are
    `swapped` with those of the next item that has another answer, are `permuted`, or have 2 % of `noise`.
    """

    name: str = "soft_thoughts"
    version: int = 1
    unit: str = "corrected dependence"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if len(examples) < 2:
            raise DataError(
                f"Soft thoughts are swapped between two or more examples, but {task.name!r} gave {len(examples)}. "
                "Ask for more items."
            )
        questions = tuple(Question.of(backbone, task, example) for example in examples)
        loaded = Profile() if profile is None else engine.profile(profile)
        with torch.no_grad():
            prompts = [loaded.transform(backbone, question.prompt_ids) for question in questions]
        thoughts = [prompt.soft_KH for prompt in prompts if prompt.soft_KH is not None]
        parts = {name: [math.nan] * len(examples) for name in ("right", "num_thoughts", *_CHANGES)}
        if profile is None or len(thoughts) < len(prompts):
            reason = f"{'the backbone' if profile is None else f'profile {profile!r}'} has no soft thoughts"
            return Readings.of(self, task, examples, [math.nan] * len(examples), parts, reason=reason)

        thinker = _Thinker(engine, backbone, profile, tuple(examples), questions)
        whole = thinker.answers(profile, range(len(examples)))
        parts["right"] = [float(belief.is_right) for belief in whole]
        parts["num_thoughts"] = [float(len(soft_KH)) for soft_KH in thoughts]
        reason = at_chance(questions, whole)
        counted = [] if reason else [index for index, belief in enumerate(whole) if belief.is_right]
        for name, variants in _variants(prompts, thoughts, examples).items():
            changes: dict[int, list[float]] = {index: [] for index in counted}
            for variant in variants:
                chosen = [index for index in counted if variant[index] is not None]
                instead = {prompts[index].ids: read for index in chosen if (read := variant[index]) is not None}
                for index, belief in zip(chosen, thinker.answers_reading(instead, chosen), strict=True):
                    changes[index].append(float(belief.answer != whole[index].answer))
            for index in counted:
                parts[name][index] = sum(changes[index]) / len(changes[index]) if changes[index] else math.nan
        noise = sum(parts["noise"][index] for index in counted) / max(1, len(counted))
        if noise > MOST_NOISE:
            reason = f"{NOISE:.0%} of noise in the thoughts changes {noise:.2f} of the answers, more than {MOST_NOISE}"
        change = [sum(row) / 3 for row in zip(parts["early"], parts["mean"], parts["swapped"], strict=True)]
        values = [math.nan if reason else (one - noise) / (1 - noise) for one in change]
        return Readings.of(self, task, examples, values, parts, reason=reason)

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """The adapted side's `dependence`, and how many answers each change turns beyond noise, with 95 % intervals against 0.

        What is paired is every item with itself, read with its own thoughts and with others. The changes are control arms of one
        another: `swapped` and `mean` at 0 beside an `early` above it are thoughts that know nothing of the question (a static
        prompt does as well); `permuted` tells whether their order matters; `noise` is what is taken off. None: not measurable.
        """
        known = [index for index, value in enumerate(adapted.values) if not math.isnan(value)]
        if not known:
            return dict.fromkeys(("dependence", "low", "high"))
        clusters = [adapted.clusters[index] for index in known]
        whole = paired_change([0.0] * len(known), [adapted.values[index] for index in known], clusters)
        found: dict[str, float | None] = {"dependence": whole.mean, "low": whole.low, "high": whole.high}
        for name in (change for change in _CHANGES if change != "noise"):
            noise, changed = ([adapted.parts[part][index] for index in known] for part in ("noise", name))
            if not any(map(math.isnan, changed)):
                change = paired_change(noise, changed, clusters)
                found |= {name: change.mean, f"{name}_low": change.low, f"{name}_high": change.high}
        return found | {"noise": sum(adapted.parts["noise"][index] for index in known) / len(known)}


@dataclass(frozen=True)
class _Thinker:
    """A profile and the items that it is asked."""

    engine: Engine
    backbone: Backbone
    profile: str
    examples: tuple[Example, ...]
    questions: tuple[Question, ...]

    def answers(self, name: str, chosen: Sequence[int]) -> list[Belief]:
        """Of the chosen items, after what is written under the name."""
        traces = written(self.engine, self.backbone, name, [self.examples[index] for index in chosen])
        asked = [(self.questions[i], encoded(self.backbone, trace)) for i, trace in zip(chosen, traces, strict=True)]
        return beliefs(self.engine, self.backbone, name, asked)

    def answers_reading(self, instead: Mapping[Ids, Prompt], chosen: Sequence[int]) -> list[Belief]:
        """The same with other prompts read, under a name of its own that is gone afterwards."""
        loaded, name = self.engine.profile(self.profile), f"{self.profile}+edited"
        self.engine.load(name, replace(loaded, adapters=(*loaded.adapters, EditedThoughts(instead))))
        try:
            return self.answers(name, chosen)
        finally:
            self.engine.unload(name)


Variant = Sequence[Prompt | None]  # by item; None where the item has none


def _variants(prompts: Sequence[Prompt], thoughts: Sequence[Tensor], examples: Sequence[Example]) -> dict[str, list[Variant]]:
    """By change: what is read instead of each prompt."""
    count = len(thoughts[0])
    mean_KH = torch.stack(list(thoughts)).mean(0)
    found: dict[str, list[Variant]] = {
        "early": [[cut(prompt, kept) for prompt in prompts] for kept in lengths(count)],
        "mean": [[replace(prompt, soft_KH=mean_KH) for prompt in prompts]],
        "swapped": [],
        "permuted": [],
        "noise": [],
    }
    swaps, orders, noisy = [], [], []
    for index, (prompt, soft_KH, example) in enumerate(zip(prompts, thoughts, examples, strict=True)):
        others = [(index + step) % len(examples) for step in range(1, len(examples))]
        partner = next((other for other in others if examples[other].answer != example.answer), None)
        swaps.append(None if partner is None else replace(prompt, soft_KH=thoughts[partner]))
        order = another_order(count, example.id)
        orders.append(None if order is None else replace(prompt, soft_KH=soft_KH[order]))
        noisy.append(replace(prompt, soft_KH=with_noise(soft_KH, example.id)))
    return found | {"swapped": [swaps], "permuted": [orders], "noise": [noisy]}


def lengths(count: int) -> list[int]:
    """How many thoughts are kept: at most 4 lengths below `count`, evenly spaced from 0."""
    return sorted({count * place // MOST_CUTS for place in range(MOST_CUTS)})


def cut(prompt: Prompt, kept: int) -> Prompt:
    """The prompt with its first `kept` thoughts; the marker tokens around them stay."""
    assert prompt.soft_KH is not None
    start, end = prompt.soft_at + kept, prompt.soft_at + len(prompt.soft_KH)
    ids = (*prompt.ids[:start], *prompt.ids[end:])
    return Prompt(ids, prompt.soft_KH[:kept], prompt.soft_at) if kept else Prompt(ids)


def another_order(count: int, key: str) -> list[int] | None:
    """A permutation that is not the identity; None of a single thought."""
    order, rng = list(range(count)), random.Random(f"permuted/{key}")
    while count > 1 and order == sorted(order):
        rng.shuffle(order)
    return order if count > 1 else None


def with_noise(soft_KH: Tensor, key: str) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(f"noise/{key}").getrandbits(63))
    noise_KH = torch.randn(soft_KH.shape, generator=generator).to(soft_KH)
    lengths_K1 = soft_KH.norm(dim=-1, keepdim=True) / noise_KH.norm(dim=-1, keepdim=True)
    noisy_KH: Tensor = soft_KH + NOISE * lengths_K1 * noise_KH
    return noisy_KH
