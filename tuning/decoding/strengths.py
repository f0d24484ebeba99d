"""A release's steering vector at other strengths and layers: rescaled to a bound of its KL, made again for another layer.

A vector is made again from the recipe's own pairs, which must be those that the released one was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial

from adapters.backbone import Backbone
from adapters.steering import Contrast, Steering
from engine.engine import Continuation, Engine, GenerationRequest
from evaluation.compression import split, vector
from evaluation.strength import Divergence, Strength, calibrated
from evaluation.task import Example, Task, reasoning_prompt
from tuning.methods.compression import Compression, CompressionMethodSpec
from tuning.plan import training_examples
from tuning.recipe import Recipe

TRACES, TRACE_TOKENS = 16, 64  # the backbone's own replies that a KL is measured on


@dataclass
class Strengths:
    """`examples` are asked for the traces; `remade` makes the vector of another layer, None where that cannot be done."""

    engine: Engine
    backbone: Backbone
    released: Steering
    examples: Sequence[Example]
    remade: Callable[[int], Steering] | None = None
    _found: dict[tuple[int, float], tuple[Steering, Strength]] = field(default_factory=dict)

    @cached_property
    def divergence(self) -> Divergence:
        """Made when first asked for: it holds whole distributions."""
        prompts = [self.backbone.chat_ids(reasoning_prompt(example)) for example in self.examples[:TRACES]]
        asked = [GenerationRequest(ids, None, max_new_tokens=TRACE_TOKENS, temperature=0.0) for ids in prompts]
        written = self.engine.complete(asked)
        return Divergence(self.backbone, [Continuation(ids, done.token_ids) for ids, done in zip(prompts, written, strict=True)])

    def at(self, layer: int, eps: float) -> tuple[Steering, Strength]:
        """The vector of that layer, as strong as the bound allows. DataError where no strength keeps it."""
        if (layer, eps) not in self._found:
            steering = self.released
            if layer != steering.layer:
                assert self.remade is not None
                steering = self.remade(layer)
            strength = calibrated(self.divergence, steering, eps)
            self._found[layer, eps] = steering.at(strength.gamma), strength
        return self._found[layer, eps]


@dataclass(frozen=True)
class Steered:
    """A release's vector at any strength, and the layers that it can have: its own first. `why` tells why there is no other."""

    strengths: Strengths
    layers: tuple[int, ...]
    why: str = ""

    @classmethod
    def of(
        cls, recipe: Recipe, released: Steering, engine: Engine, backbone: Backbone, task: Task, examples: Sequence[Example]
    ) -> Steered:
        """Its pairs are read or written again where its own sweep found another layer that shortens."""
        assert released.layer is not None
        alone, others = Strengths(engine, backbone, released, examples), _shortening(released)
        own = (released.layer,)
        if released.record is None or not isinstance(recipe.method, CompressionMethodSpec):
            return cls(alone, own, "the release does not say from which pairs its vector was made")
        if not others:
            return cls(alone, own, "its own sweep found no other layer that shortens")
        try:
            pairs = Compression(recipe.method).pairs(engine, backbone, task, training_examples(recipe, task))
        except (ValueError, OSError) as error:
            return cls(alone, own, f"its pairs cannot be made again ({error})")
        if pairs.digest() != released.record.pairs_digest:
            return cls(alone, own, "the pairs that its recipe makes here are not those that its vector was made from")
        remade = partial(_remade, backbone, [pair.contrast(backbone) for pair in split(pairs.pairs)[0]], recipe.method, others)
        return cls(Strengths(engine, backbone, released, examples, cache(remade)), (*own, *others))


def _shortening(released: Steering) -> dict[int, bool]:
    """The other layers at which one direction was shown to shorten, and whether that was the negative."""
    rows = released.record.layers if released.record is not None else ()
    kept = [row for row in rows if row.signs.shortens != "neither" and row.layer != released.layer]
    return {row.layer: row.signs.shortens == "its negative" for row in kept}


def _remade(
    backbone: Backbone, contrasts: Sequence[Contrast], method: CompressionMethodSpec, turned: Mapping[int, bool], layer: int
) -> Steering:
    made = vector(backbone, contrasts, method.compression, layer)
    return made.flipped if turned[layer] else made
