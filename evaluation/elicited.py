"""Elicited or installed: the share of an adapter's gain that a handful of fixed vectors gives the bare backbone.

The recovery of Venhoff et al. (arXiv 2510.07364), (steered - backbone) / (adapter - backbone), in nats per token of given texts.
There are at most five vectors, one a layer: the mean difference between the adapter's and the backbone's states on the same
text. The lowest layer comes first and each further vector is taken with those below it in place, so that it holds only what
they did not bring about. A high share says that the adapter mostly turns on what the backbone could do; a low one, that it wrote
something in. Random vectors of equal norm and the opposite sign stand beside it: what they recover, no direction explains.
Vectors are made on some texts and judged on others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.steering import Steering, SteeringSpec
from engine.engine import Continuation, Engine
from engine.inspect import NOT_HERE, Inspector, inspector
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.statistics import PairedChange, paired_change, ratio
from evaluation.task import Example, answer_line, direct_prompt, reasoning_prompt

# Legend: L layers, P places, H hidden

MAX_VECTORS = 5
RANDOM_DRAWS = 3
HALF = 0.5  # of the gain: recovered by more, it was elicited; by less, installed
_STEERED = "steered"  # the name under which the engine holds the steered backbone


@dataclass(frozen=True)
class Share:
    """Of the adapter's gain, with a 95 % interval over clusters of texts."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """None where an end is infinite: a draw of the texts gained nothing."""
        return {name: end if math.isfinite(end) else None for name, end in asdict(self).items()}


@dataclass(frozen=True)
class Elicited:
    """`gain` is adapter minus backbone in nats per token; the shares are None where it is not shown to be above 0."""

    gain: PairedChange | None
    share: Share | None = None
    opposite: Share | None = None
    random: tuple[Share, ...] = ()
    vectors: tuple[Steering, ...] = ()
    not_measurable: str = ""
    clusters: tuple[str, ...] = ()  # of the texts that the gain is of
    tokens: int = 0  # that went through a forward for it

    @property
    def verdict(self) -> Literal["elicited", "installed", "undecided", "not measurable"]:
        if self.share is None or self.opposite is None:
            return "not measurable"
        if self.share.high < HALF:
            return "installed"
        by_chance = max((draw.high for draw in self.random), default=-math.inf)
        clear = self.share.low > max(HALF, by_chance) and not self.opposite.low > 0
        return "elicited" if clear else "undecided"

    def as_dict(self) -> dict[str, Any]:
        gain = self.gain
        return {
            "verdict": self.verdict,
            "not_measurable": self.not_measurable or None,
            "gain": {"change": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n} if gain else None,
            "share": self.share.as_dict() if self.share else None,
            "opposite": self.opposite.as_dict() if self.opposite else None,
            "random": [draw.as_dict() for draw in self.random],
            "layers": [vector.layer for vector in self.vectors],
            "tokens": self.tokens,
            "items": {"gain": list(gain.per_item), "clusters": list(self.clusters)} if gain else None,
            "norms": [float(vector.tensors()["vector"].norm()) for vector in self.vectors],
        }


def answer_texts(backbone: Backbone, examples: Sequence[Example]) -> list[Continuation]:
    """The gold answer where the answer alone is asked for; of its line, what comes after `Answer:` is judged."""
    end, prefix = int(backbone.tokenizer.eos_token_id), len(backbone.encode(answer_line("").rstrip()))
    return [
        Continuation(backbone.chat_ids(direct_prompt(example)), (*backbone.encode(answer_line(example.answer)), end), prefix)
        for example in examples
    ]


def chain_texts(backbone: Backbone, examples: Sequence[Example]) -> list[Continuation]:
    """The gold steps and the answer line where reasoning is asked for."""
    if bare := [example.id for example in examples if not example.steps]:
        raise DataError(f"A chain needs a rationale, but example {bare[0]!r} has none. Judge the answers instead, or add one.")
    end = int(backbone.tokenizer.eos_token_id)
    return [
        Continuation(backbone.chat_ids(reasoning_prompt(example)), (*backbone.encode(example.chain), end)) for example in examples
    ]


def elicited(
    engine: Engine,
    backbone: Backbone,
    profile: str,
    made_on: Sequence[Continuation],
    judged_on: Sequence[Continuation],
    clusters: Sequence[str],
    num_vectors: int = MAX_VECTORS,
    num_random: int = RANDOM_DRAWS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Elicited:
    """`clusters` has one name a text of `judged_on`; the two sets of texts share none.

    `on_progress` hears of the beginning, of every vector and of every reading; where nothing was gained, most are not made.
    """
    if not 1 <= num_vectors <= MAX_VECTORS:
        raise ValueError(f"The index is about 1 to {MAX_VECTORS} vectors, but got {num_vectors}. More would be an adapter.")
    if not made_on or set(made_on) & set(judged_on):
        raise ValueError(
            f"Vectors are made on texts that they are not judged on, but got {len(made_on)} and {len(judged_on)} texts that "
            f"share {len(set(made_on) & set(judged_on))}. Take them from different splits."
        )
    inside = inspector(engine)
    if inside is None:
        return Elicited(None, not_measurable=NOT_HERE)
    layers = spread(len(backbone.layers), num_vectors)
    done, of = count(), 4 + len(layers) + num_random  # both sides, the vectors, and those turned round

    def step() -> None:
        on_progress(next(done), of)

    step()
    before = engine.stats().forward_tokens
    found = _elicited(engine, inside, backbone, profile, made_on, judged_on, clusters, layers, num_random, seed, step)
    return replace(found, clusters=tuple(clusters), tokens=engine.stats().forward_tokens - before)


def _elicited(
    engine: Engine,
    inside: Inspector,
    backbone: Backbone,
    profile: str,
    made_on: Sequence[Continuation],
    judged_on: Sequence[Continuation],
    clusters: Sequence[str],
    layers: Sequence[int],
    num_random: int,
    seed: int,
    step: Callable[[], None],
) -> Elicited:
    def scores(name: str | None) -> list[float]:
        """Nats per token, text by text."""
        found = [sum(row) / len(row) for row in engine.score(judged_on, name)]
        step()
        return found

    base, adapted = scores(None), scores(profile)
    gain = paired_change(base, adapted, clusters)
    if not gain.low > 0:
        reason = f"the adapter's gain on these texts, {gain} nats per token, is not shown to be above 0"
        return Elicited(gain, not_measurable=reason)
    vectors = steering_vectors(inside, backbone, profile, made_on, layers, step)

    def recovered(steering: Sequence[Steering]) -> Share:
        engine.load(_STEERED, Profile(tuple(steering)))
        try:
            steered = scores(_STEERED)
        finally:
            engine.unload(_STEERED)
        return Share(*ratio(gain.per_item, [after - before for before, after in zip(base, steered, strict=True)], clusters))

    return Elicited(
        gain,
        recovered(vectors),
        recovered([vector.scaled(-1.0) for vector in vectors]),
        tuple(recovered(_random(backbone, vectors, f"{seed}/{draw}")) for draw in range(num_random)),
        vectors,
    )


def spread(num_layers: int, count: int) -> tuple[int, ...]:
    """At most `count` layers, at the middles of equal parts of the depth."""
    return tuple(sorted({int((index + 0.5) * num_layers / count) for index in range(count)}))


def steering_vectors(
    inside: Inspector,
    backbone: Backbone,
    profile: str,
    texts: Sequence[Continuation],
    layers: Sequence[int],
    step: Callable[[], None],
) -> tuple[Steering, ...]:
    """One a layer, lowest first, each the mean over the texts of the mean over the places that their tokens are read from."""
    vectors: tuple[Steering, ...] = ()
    for layer in layers:
        inside.load(_STEERED, Profile(vectors))
        try:
            # Both rows of a text stand in one batch, and differ in nothing but the adapter.
            found = inside.hidden_states(
                [text for text in texts for _ in range(2)], [name for _ in texts for name in (profile, _STEERED)], [layer]
            )
        finally:
            inside.unload(_STEERED)
        means_H = [states_LPH[0, :-1].mean(dim=0) for states_LPH in found]
        differences = [adapted - steered for adapted, steered in zip(means_H[::2], means_H[1::2], strict=True)]
        vector_H = torch.stack(differences).mean(dim=0)
        vectors = (*vectors, Steering.of(SteeringSpec(layer=layer), backbone, vector_H))
        step()
    return vectors


def _random(backbone: Backbone, vectors: Sequence[Steering], seed: str) -> list[Steering]:
    """At the same layers, of the same norms, in directions drawn at random."""

    def drawn(vector: Steering) -> Tensor:
        generator = torch.Generator().manual_seed(random.Random(f"{seed}/{vector.layer}").getrandbits(63))
        direction_H = torch.randn(backbone.hidden_size, generator=generator)
        equal_H: Tensor = direction_H * vector.tensors()["vector"].norm().cpu() / direction_H.norm()
        return equal_H

    return [Steering.of(vector.spec, backbone, drawn(vector)) for vector in vectors]
