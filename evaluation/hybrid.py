"""Recovery: how much of what an adapter gained the bare backbone has, when few vectors steer it where the adapter would differ.

(hybrid - backbone) / (adapter - backbone), of Venhoff et al. (arXiv 2510.07364), in right answers and in nats per token of what
the adapter writes. The oracle tells where and which way to look, so every part of it has its control: categories drawn at random,
random vectors of equal norm at the same places, the same share of tokens steered at random places, and one vector for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapters.backbone import Backbone
from adapters.routing import Routing
from engine.engine import Continuation, Engine, GenerationRequest
from engine.profile import Profile
from evaluation.elicited import Share
from evaluation.statistics import PairedChange, paired_change, ratio
from evaluation.task import Example, Task, is_right, reasoning_prompt
from evaluation.tasks.generated import draws_groups

HYBRID = "hybrid"
CONTROLS = ("random categories", "random vectors", "random places", "bias only")
_ADAPTED, _ROUTED = "adapted", "routed"  # names under which the engine holds the profiles


@dataclass(frozen=True)
class Recovery:
    """`gain` is adapter minus backbone; the shares, by arm, are empty where it is not shown to be above 0."""

    unit: str
    gain: PairedChange
    shares: Mapping[str, Share] = field(default_factory=dict)

    @property
    def not_measurable(self) -> str:
        """Why; empty where it is."""
        return "" if self.shares else f"the adapter's gain, {self.gain} {self.unit}, is not shown to be above 0"

    @property
    def above_controls(self) -> bool:
        """Whether the hybrid's interval lies above that of every control."""
        others = [share.high for name, share in self.shares.items() if name != HYBRID]
        return HYBRID in self.shares and self.shares[HYBRID].low > max(others)

    def as_dict(self) -> dict[str, Any]:
        gain = self.gain
        return {
            "unit": self.unit,
            "gain": {"change": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n},
            "recovery": {name: share.as_dict() for name, share in self.shares.items()},
            "above_controls": self.above_controls,
            "not_measurable": self.not_measurable or None,
        }


@dataclass(frozen=True)
class Hybrid:
    """`steered`: the share of written tokens that were steered, by arm."""

    answers: Recovery
    texts: Recovery
    steered: Mapping[str, float]
    tokens: int  # that went through a forward for all of it

    def as_dict(self) -> dict[str, Any]:
        return {
            "answers": self.answers.as_dict(),
            "texts": self.texts.as_dict(),
            "steered": dict(self.steered),
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class _Arm:
    right: tuple[float, ...]
    nats: tuple[float, ...]  # per token of the adapter's texts, negative


def greedy_texts(
    engine: Engine, backbone: Backbone, profile: str | None, prompts: Sequence[str], max_new_tokens: int
) -> list[Continuation]:
    """What the profile writes to these prompts."""
    asked = [GenerationRequest(backbone.chat_ids(prompt), profile, max_new_tokens, temperature=0.0) for prompt in prompts]
    written = engine.complete(asked)
    return [Continuation(request.prompt_ids, done.token_ids) for request, done in zip(asked, written, strict=True)]


def hybrid(
    engine: Engine,
    backbone: Backbone,
    profile: Profile,
    routing: Routing,
    bias: Routing,
    task: Task,
    examples: Sequence[Example],
    prompt: Callable[[Example], str] = reasoning_prompt,
    max_new_tokens: int = 160,
    seed: int = 0,
) -> Hybrid:
    """On examples that fitted nothing. `bias` is the routing of a single category. CannotRun where the engine does not route."""
    before = engine.stats().forward_tokens
    prompts, clusters = [prompt(example) for example in examples], [example.group for example in examples]
    engine.load(_ADAPTED, replace(profile, routing=None))
    try:
        texts = greedy_texts(engine, backbone, _ADAPTED, prompts, max_new_tokens)

        def read(name: str | None) -> _Arm:
            written = greedy_texts(engine, backbone, name, prompts, max_new_tokens)
            right = [
                float(is_right(task, example, backbone.decode(text.ids))) for example, text in zip(examples, written, strict=True)
            ]
            return _Arm(tuple(right), tuple(sum(row) / len(row) for row in engine.score(texts, name)))

        own, adapted = read(None), read(_ADAPTED)
        steered: dict[str, float] = {}

        def routed(name: str, by: Routing) -> _Arm:
            engine.load(_ROUTED, replace(profile, routing=by))
            past = engine.stats()
            try:
                found = read(_ROUTED)
            finally:
                now = engine.stats()
                engine.unload(_ROUTED)
            counted = [
                now_by.get(_ROUTED, 0) - past_by.get(_ROUTED, 0)
                for now_by, past_by in ((now.steered_tokens, past.steered_tokens), (now.generated_tokens, past.generated_tokens))
            ]
            steered[name] = counted[0] / counted[1]
            return found

        arms = {HYBRID: routed(HYBRID, routing)}
        controls = (
            routing.with_random_categories(seed),
            routing.with_random_vectors(seed),
            routing.at_random_places(steered[HYBRID], seed),
            bias,
        )
        arms |= {name: routed(name, control) for name, control in zip(CONTROLS, controls, strict=True)}
    finally:
        engine.unload(_ADAPTED)
    drawn = draws_groups(task, clusters)
    rights, all_nats = ({name: arm.right for name, arm in arms.items()}, {name: arm.nats for name, arm in arms.items()})
    answers = _recovery("right answers", own.right, adapted.right, rights, clusters, drawn)
    nats = _recovery("nats per token", own.nats, adapted.nats, all_nats, clusters, drawn)
    return Hybrid(answers, nats, steered, engine.stats().forward_tokens - before)


def _recovery(
    unit: str,
    own: Sequence[float],
    adapted: Sequence[float],
    arms: Mapping[str, Sequence[float]],
    clusters: Sequence[str],
    drawn_clusters: bool,
) -> Recovery:
    gain = paired_change(own, adapted, clusters, drawn_clusters=drawn_clusters)
    if not gain.low > 0:
        return Recovery(unit, gain)
    shares = {
        name: Share(*ratio(gain.per_item, [after - before for before, after in zip(own, values, strict=True)], clusters))
        for name, values in arms.items()
    }
    return Recovery(unit, gain, shares)
