"""Thought tracing as a scenario: belief questions answered plainly, after a perspective filter, and after traced thoughts.

All three are scored alike, by likelihood over the two containers in both orders, on the same questions; what each spent stands
beside, since a step of tracing costs a dozen calls. The filter is that of SimToM (Wilf et al., arXiv 2311.10227), the tracing
that of Kim et al. (arXiv 2502.11881) with accumulated weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.backbone import Backbone
from engine.decoding.thought_tracing import Rounds, ThoughtTracing, Traced, run_rounds
from engine.decoding.tracing import Tracing
from engine.decoding.tracing_prompts import sentences
from engine.engine import Engine
from evaluation.measures.belief import belief_margins
from evaluation.statistics import PairedChange, paired_change
from evaluation.task import Example
from evaluation.tasks.belief import Asked

WAYS = ("perspective filter", "thought tracing")


@dataclass(frozen=True)
class Way:
    """One way of answering, item by item. `num_traced`: the items that it could be done on; the others are answered plainly."""

    margins: tuple[float, ...]  # nats
    tokens: int  # that went through a forward
    num_traced: int
    right: PairedChange | None = None  # against answering plainly; None of that itself
    margin: PairedChange | None = None

    @property
    def accuracy(self) -> float:
        return sum(margin > 0 for margin in self.margins) / len(self.margins)

    def as_dict(self) -> dict[str, Any]:
        def told(change: PairedChange | None) -> dict[str, float] | None:
            return {"change": change.mean, "low": change.low, "high": change.high} if change else None

        return {
            "accuracy": self.accuracy,
            "margin": sum(self.margins) / len(self.margins),
            "tokens": self.tokens,
            "tokens_per_item": self.tokens / len(self.margins),
            "traced": self.num_traced,
            "right_against_plain": told(self.right),
            "margin_against_plain": told(self.margin),
        }


@dataclass(frozen=True)
class Thoughts:
    plain: Way
    ways: Mapping[str, Way]  # by the names in WAYS
    item_ids: tuple[str, ...]
    spec: Tracing = field(default_factory=Tracing)

    def as_dict(self) -> dict[str, Any]:
        ways = {"plain": self.plain, **self.ways}
        return {
            "items": len(self.item_ids),
            "spec": self.spec.model_dump(),
            "ways": {n: way.as_dict() for n, way in ways.items()},
        }


def about_beliefs(examples: Sequence[Example]) -> list[Example]:
    """The questions of first and second order: what they are asked about is a mind."""
    return [example for example in examples if Asked.of(example).is_about_belief]


def compare_ways(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    examples: Sequence[Example],
    spec: Tracing | None = None,
    seed: int = 0,
) -> Thoughts:
    """Of belief questions; a story set is a draw of many, so that changes have the interval of the sets."""
    asking, clusters = ThoughtTracing(backbone, spec or Tracing(), profile, seed), [example.group for example in examples]

    def way(rounds: Callable[[str, str], Rounds] | None) -> Way:
        before = engine.stats().forward_tokens
        found = [Traced(_parted(example)[0]) for example in examples]
        if rounds is not None:
            found = run_rounds(engine, [rounds(*_parted(example)) for example in examples], profile)
        told = [replace(one, question=_asked(one, each.story)) for one, each in zip(examples, found, strict=True)]
        margins = belief_margins(engine, backbone, profile, told)
        changed = sum(each.story != _parted(example)[0] for each, example in zip(found, examples, strict=True))
        return Way(tuple(margins), engine.stats().forward_tokens - before, changed)

    plain = way(None)

    def compared(found: Way) -> Way:
        right = [[float(margin > 0) for margin in each.margins] for each in (plain, found)]
        return replace(
            found,
            right=paired_change(right[0], right[1], clusters, drawn_clusters=True),
            margin=paired_change(plain.margins, found.margins, clusters, drawn_clusters=True),
        )

    ways = {name: compared(way(rounds)) for name, rounds in zip(WAYS, (asking.filtered, asking.rounds), strict=True)}
    return Thoughts(plain, ways, tuple(example.id for example in examples), asking.spec)


def _parted(example: Example) -> tuple[str, str]:
    """Story and question."""
    *story, question = sentences(example.question)
    return " ".join(story), question


def _asked(example: Example, story: str) -> str:
    return f"{story} {_parted(example)[1]}" if story == _parted(example)[0] else f"{story}\n{_parted(example)[1]}"
