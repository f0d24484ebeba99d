"""Steering by a feature beside its nulls: the same strength from a random column, and from a plain difference of means.

What is read is what the feature is said to be about: how often its words are written, and with it how much is written, how much
of it is right and how far the distribution moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.sae import SAE
from adapters.steering import Steering, SteeringSpec
from engine.engine import Continuation, Engine, GenerationRequest
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.reason_score import Groups, share_marked
from evaluation.statistics import PairedChange, paired_change
from evaluation.strength import Divergence
from evaluation.task import Example, Task, is_right, reasoning_prompt

# Legend: H hidden

OFF, COLUMN, CLAMP, MEANS = "off", "column", "clamp", "difference of means"
RANDOM_DRAWS = 3
_LOADED = "steered by a feature"
_TRACES = 8  # of the replies without steering: what the KL is measured on


@dataclass(frozen=True)
class Read:
    """One system over the items: the share of words that are of the vocabulary, tokens, right answers, and the mean KL."""

    words: tuple[float, ...]
    tokens: tuple[float, ...]
    right: tuple[float, ...]
    kl: float
    length: float | None  # of what is added; None where that depends on the state

    def means(self) -> dict[str, float | None]:
        parts = {"words": self.words, "tokens": self.tokens, "right": self.right}
        return {name: sum(part) / len(part) for name, part in parts.items()} | {"kl": self.kl, "length": self.length}


@dataclass(frozen=True)
class Compared:
    """`steers` is by the words alone: more than without, and more than under random columns of the same length."""

    feature: int
    strength: float
    systems: Mapping[str, Read]
    more_than_off: Mapping[str, PairedChange]  # in words, by system
    more_than_random: Mapping[str, PairedChange]

    def steers(self, system: str) -> bool:
        return self.more_than_off[system].low > 0 and self.more_than_random[system].low > 0

    def as_dict(self) -> dict[str, Any]:
        def told(changes: Mapping[str, PairedChange]) -> dict[str, list[float]]:
            return {name: [change.mean, change.low, change.high] for name, change in changes.items()}

        return {
            "feature": self.feature,
            "strength": self.strength,
            "systems": {name: read.means() for name, read in self.systems.items()},
            "more_than_off": told(self.more_than_off),
            "more_than_random": told(self.more_than_random),
            "steers": {name: self.steers(name) for name in self.more_than_random},
        }


def nulls(backbone: Backbone, sae: SAE, feature: int, strength: float, means_H: Tensor) -> dict[str, Steering]:
    """The difference of means and random columns of other features that are alive, each as long as the feature's own column."""
    length = strength * float(sae.max_act_F[feature])
    spec = SteeringSpec(layer=sae.record.layer)
    alive = [other for other in (sae.frequency_F > 0).nonzero()[:, 0].tolist() if other != feature]
    if len(alive) < RANDOM_DRAWS:
        raise DataError(
            f"Random columns are drawn from {RANDOM_DRAWS} live features or more, but {len(alive)} live. Train again."
        )
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(feature)).tolist()
    columns = {f"random column {draw + 1}": sae.w_dec_FH[alive[order[draw]]] for draw in range(RANDOM_DRAWS)}
    made = {MEANS: means_H / means_H.norm().clamp(min=1e-12), **columns}
    return {name: Steering.of(spec, backbone, length * vector_H) for name, vector_H in made.items()}


def check_strength(strength: float) -> None:
    """DataError for what there is nothing to compare at."""
    if not 0 < strength < math.inf:
        raise DataError(f"A feature is compared at a finite strength above 0, but got {strength:g}. 1 is its largest activation.")


def compared(
    engine: Engine,
    backbone: Backbone,
    sae: SAE,
    feature: int,
    strength: float,
    means_H: Tensor,
    groups: Groups,
    items: Sequence[tuple[Task, Sequence[Example]]],
    max_new_tokens: int,
) -> Compared:
    """Greedy replies to the same questions under each system."""
    check_strength(strength)
    systems: dict[str, Steering | None] = {OFF: None}
    systems |= {form: sae.steering(backbone, feature, form, strength) for form in (COLUMN, CLAMP)}
    systems |= nulls(backbone, sae, feature, strength, means_H)
    plain = _replies(engine, backbone, None, items, max_new_tokens)
    traces = [Continuation(prompt, ids) for prompt, ids, _ in plain if ids][:_TRACES]
    divergence = Divergence(backbone, traces)
    read: dict[str, Read] = {}
    for name, steering in systems.items():
        replies = plain if steering is None else _replies(engine, backbone, steering, items, max_new_tokens)
        read[name] = _read(replies, items, groups, steering, divergence)
    clusters = [example.group for _, examples in items for example in examples]
    by_chance = [read[name].words for name in systems if name.startswith("random")]
    random_words = [sum(draws) / len(draws) for draws in zip(*by_chance, strict=True)]
    steered = [name for name, steering in systems.items() if steering is not None]
    return Compared(
        feature,
        strength,
        read,
        {name: paired_change(read[OFF].words, read[name].words, clusters) for name in steered},
        {name: paired_change(random_words, read[name].words, clusters) for name in (COLUMN, CLAMP, MEANS)},
    )


_Reply = tuple[tuple[int, ...], tuple[int, ...], str]  # prompt, tokens and text


def _replies(
    engine: Engine,
    backbone: Backbone,
    steering: Steering | None,
    items: Sequence[tuple[Task, Sequence[Example]]],
    max_new_tokens: int,
) -> list[_Reply]:
    prompts = [backbone.chat_ids(reasoning_prompt(example)) for _, examples in items for example in examples]
    name = None if steering is None else _LOADED
    if steering is not None:
        engine.load(_LOADED, Profile((steering,)))
    try:
        asked = [GenerationRequest(ids, name, max_new_tokens=max_new_tokens, temperature=0.0) for ids in prompts]
        return [(ids, reply.token_ids, reply.text) for ids, reply in zip(prompts, engine.complete(asked), strict=True)]
    finally:
        if steering is not None:
            engine.unload(_LOADED)


def _read(
    replies: Sequence[_Reply],
    items: Sequence[tuple[Task, Sequence[Example]]],
    groups: Groups,
    steering: Steering | None,
    divergence: Divergence,
) -> Read:
    asked = [(task, example) for task, examples in items for example in examples]
    right = tuple(float(is_right(*one, text)) for one, (*_, text) in zip(asked, replies, strict=True))
    words = tuple(share_marked(text, groups) for *_, text in replies)
    kl = 0.0 if steering is None else divergence.of(steering)
    residual = [] if steering is None else list(steering.contribution().residual.values())
    length = 0.0 if steering is None else math.fsum(float(vector_H.norm()) for vector_H in residual) if residual else None
    return Read(words, tuple(float(len(ids)) for _, ids, _ in replies), right, kl, length)
