"""A compression vector: made from long and short chains, as strong as a KL allows, tested for its sign, at the layer that serves.

After activation-steered compression (ASC, Azizi et al. 2025, arXiv 2507.04742), whose own strengths and layer are of large
models. What it does to accuracy beside a token cap is another matter: see evaluation.cap_curve.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from adapters.backbone import Backbone
from adapters.ces import CESSpec, contrastive
from adapters.spec import Choices, Range, Spec
from adapters.steering import Contrast, Layer, Steering, SteeringSpec
from adapters.steering_record import LayerRow, Signs, SteeringRecord
from engine.engine import Engine, GenerationRequest
from engine.profile import Profile
from evaluation.errors import DataError
from evaluation.pairs import Pair, Pairs
from evaluation.refusals import PROMPTS, refusal_probe
from evaluation.statistics import paired_change
from evaluation.strength import Divergence, Strength, calibrated
from evaluation.task import Example, Task, is_right, reasoning_prompt
from evaluation.tasks.generated import draws_groups

LAYERS = (0.4, 0.5, 0.6, 0.7, 0.8)
FRESH = 1  # the seed of the items that the chosen layer is tested on again
HELD_OUT = 4  # every so-many-th pair makes no vector: its long chain calibrates the strength
_PLUS, _MINUS = "steered", "steered the other way"  # the names under which the engine holds the vector


class DeadVector(DataError):
    """Neither direction is shown to shorten what the backbone writes, or only at a cost in answers."""


class CompressionSpec(Spec):
    """`eps` bounds the mean KL to the backbone in nats per token; a layer may cost `tolerance` of the accuracy at most."""

    eps: Annotated[float, Range(3e-3, 0.1, log=True), Field(gt=0)] = 0.03
    layers: tuple[Layer, ...] = Field(default=LAYERS, min_length=1)
    method: Annotated[Literal["diffmean", "ces"], Choices(("diffmean", "ces"))] = "diffmean"
    pooling: Annotated[Literal["last", "mean_cot"], Choices(("last", "mean_cot"))] = "mean_cot"
    ces: CESSpec = CESSpec()
    items: int = Field(default=24, ge=8)  # of the search split, for the sign test
    max_new_tokens: int = Field(default=128, ge=1)
    tolerance: float = Field(default=0.05, ge=0)


OnProgress = Callable[[str, int, int], None]  # what is being counted, how many are done, of how many


@dataclass(frozen=True)
class _Tried:
    row: LayerRow
    steering: Steering
    strength: Strength


def compress(
    engine: Engine,
    backbone: Backbone,
    pairs: Pairs,
    task: Task,
    spec: CompressionSpec,
    prompts: Sequence[str] = PROMPTS,
    on_progress: OnProgress = lambda what, done, of: None,
) -> Steering:
    """The vector of the layer that shortens most, its record beside it. DeadVector where no layer's does.

    The layer is chosen among several, so that the one chosen is tested again on items drawn anew: those signs are the record's.
    `prompts` are those of the refusal probe; without any there is none, and the record says so.
    """
    made_on, held_out = split(pairs.pairs)
    contrasts = [pair.contrast(backbone) for pair in made_on]
    divergence = Divergence(backbone, [pair.verbose_trace(backbone) for pair in held_out])
    examples = task.examples("search", spec.items)
    layers = sorted({_spec(spec, layer).index(len(backbone.layers)) for layer in spec.layers})
    tried = list[_Tried]()
    for done, layer in enumerate(layers):
        on_progress("layers", done, len(layers))
        steering = vector(backbone, contrasts, spec, layer)
        strength = calibrated(divergence, steering, spec.eps)
        steering = steering.at(strength.gamma)
        found = signs(engine, backbone, steering, task, examples, spec.max_new_tokens)
        norm = float(steering.contribution().residual[layer].norm())
        row = LayerRow(layer=layer, gamma=strength.gamma, kl=strength.kl, norm=norm, signs=found)
        tried.append(_Tried(row, steering, strength))
    on_progress("layers", len(layers), len(layers))
    best = _best([one.row for one in tried], spec.tolerance)
    chosen = next(one for one in tried if one.row is best)
    steering, strength = chosen.steering, chosen.strength
    flipped = best.signs.shortens == "its negative"
    if flipped:
        strength = calibrated(divergence, steering.flipped, spec.eps)
        steering = steering.flipped.at(strength.gamma)
    found = signs(engine, backbone, steering, task, task.examples("search", spec.items, seed=FRESH), spec.max_new_tokens)
    if found.shortens != "the vector" or not _keeps(found, 2, spec.tolerance):
        raise DeadVector(
            f"The vector of layer {best.layer} shortened the replies that it was chosen by, but of the same on items drawn anew "
            f"that is not shown ({_counts(found)}). Take more items, other pairs, a larger eps or method ces."
        )
    refusals = None
    if prompts:
        engine.load(_PLUS, Profile((steering,)))
        try:
            refusals = refusal_probe(engine, backbone, _PLUS, prompts)
        finally:
            engine.unload(_PLUS)
    return steering.recorded(
        SteeringRecord(
            eps=spec.eps,
            gamma=strength.gamma,
            kl=strength.kl,
            kl_curve=strength.curve,
            kl_tokens=strength.tokens,
            hidden_norm_median=strength.hidden_norm_median,
            signs=found,
            flipped=flipped,
            layers=tuple(one.row for one in tried),
            pairs=len(pairs.pairs),
            pairs_digest=pairs.digest(),
            template_digest=template_digest(backbone),
            refusals=refusals,
        )
    )


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Those that make the vector, and those whose long chains calibrate it."""
    held_out = list(pairs[HELD_OUT - 1 :: HELD_OUT])
    return [pair for pair in pairs if pair not in held_out], held_out


def vector(backbone: Backbone, contrasts: Sequence[Contrast], spec: CompressionSpec, layer: int) -> Steering:
    made = _spec(spec, layer)
    if spec.method == "ces":
        return contrastive(made, spec.ces, backbone, contrasts)
    return Steering.difference_of_means(made, backbone, contrasts)


def signs(
    engine: Engine, backbone: Backbone, steering: Steering, task: Task, examples: Sequence[Example], max_new_tokens: int
) -> Signs:
    """Greedy replies to the same questions under minus the vector, without it, and under it."""
    engine.load(_PLUS, Profile((steering,)))
    engine.load(_MINUS, Profile((steering.flipped,)))
    try:
        sides = (_MINUS, None, _PLUS)
        asked = [
            GenerationRequest(backbone.chat_ids(reasoning_prompt(e)), name, max_new_tokens=max_new_tokens, temperature=0.0)
            for name in sides
            for e in examples
        ]
        replies = engine.complete(asked)
    finally:
        for name in (_PLUS, _MINUS):
            engine.unload(name)
    n = len(examples)
    by_side = [replies[place * n : (place + 1) * n] for place in range(len(sides))]
    tokens = [[len(reply.token_ids) for reply in side] for side in by_side]
    right = [[is_right(task, e, reply.text) for e, reply in zip(examples, side, strict=True)] for side in by_side]
    logs = [[math.log1p(count) for count in side] for side in tokens]
    clusters = [example.group for example in examples]
    drawn, sides_of = draws_groups(task, clusters), ((0, 2), (1, 0), (1, 2))
    changes = [paired_change(logs[one], logs[other], clusters, drawn_clusters=drawn) for one, other in sides_of]
    across, to_minus, to_plus = ((change.mean, change.low, change.high) for change in changes)
    minus, off, plus = (sum(side) / n for side in tokens)
    worse, plain, better = (sum(side) / n for side in right)
    return Signs(
        tokens=(minus, off, plus),
        accuracy=(worse, plain, better),
        change=across,
        minus_change=to_minus,
        plus_change=to_plus,
        num_items=n,
    )


def template_digest(backbone: Backbone) -> str:
    """SHA-256 of the chat template."""
    return hashlib.sha256(str(backbone.tokenizer.chat_template).encode()).hexdigest()


def _spec(spec: CompressionSpec, layer: int | float) -> SteeringSpec:
    return SteeringSpec(layer=layer, pooling=spec.pooling, method=spec.method)


def _best(rows: Sequence[LayerRow], tolerance: float) -> LayerRow:
    """Of the layers where one direction is shown to shorten, and costs no more answers than that, the one that leaves least."""

    def side(row: LayerRow) -> int:
        return 0 if row.signs.shortens == "its negative" else 2

    decided = [row for row in rows if row.signs.shortens != "neither"]
    kept = [row for row in decided if _keeps(row.signs, side(row), tolerance)]
    if not kept:
        told = "; ".join(_told(row) for row in rows)
        raise DeadVector(
            "A compression vector is kept if one of its directions is shown to shorten the replies at no more than "
            f"{tolerance:g} of the accuracy, but at no layer is that so ({told}). Take other pairs, a larger eps or method ces."
        )
    return min(kept, key=lambda row: row.signs.tokens[side(row)])


def _keeps(found: Signs, side: int, tolerance: float) -> bool:
    """Whether that side has as many right as without the vector, but for the tolerance."""
    return found.accuracy[side] >= found.accuracy[1] - tolerance


def _told(row: LayerRow) -> str:
    return f"layer {row.layer}: {_counts(row.signs)}"


def _counts(found: Signs) -> str:
    tokens = " / ".join(f"{count:.0f}" for count in found.tokens)
    right = " / ".join(f"{share:.2f}" for share in found.accuracy)
    return f"{tokens} tokens and {right} right under minus, without, plus"
