"""An engine that writes what a script says: from an example and the reply's beginning to the rest of the reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Completion, Engine, EngineStats, GenerationRequest, TokenLogprob
from engine.profile import Profile
from evaluation.task import Example

Script = Callable[[Example, str], "Reply"]


@dataclass(frozen=True)
class Reply:
    """The rest of a reply. `p`: of every token; `others`: what could stand instead at any place, likeliest first."""

    text: str
    p: float = 0.9
    others: tuple[str, ...] = ("Wait",)


class ScriptedEngine(IdleEngine):
    """`scripts` by profile name; None is the backbone's."""

    def __init__(self, backbone: Backbone, examples: Sequence[Example], scripts: dict[str | None, Script]) -> None:
        self.backbone, self.scripts = backbone, scripts
        self._examples = sorted(examples, key=lambda example: -len(example.question))
        self.num_calls = self._generated = 0

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.num_calls += 1
        return [self._completion(request) for request in requests]

    def profile(self, name: str) -> Profile:
        return Profile()

    def unload(self, name: str) -> None:
        del self.scripts[name]

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"generate"})

    def stats(self) -> EngineStats:
        return EngineStats(generated_tokens={"": self._generated})

    def _completion(self, request: GenerationRequest) -> Completion:
        backbone, prompt = self.backbone, self.backbone.decode(request.prompt_ids)
        example = next(example for example in self._examples if example.question in prompt)
        reply = self.scripts[request.profile](example, backbone.decode(request.begun_ids))
        whole = [*backbone.encode(reply.text), int(backbone.tokenizer.eos_token_id)][: request.max_new_tokens]
        ids = self._up_to_stop(whole, request.stop)
        text = backbone.decode(ids)
        cuts = [text.find(stop) for stop in request.stop if stop in text]
        self._generated += len(ids)
        return Completion(
            text[: min(cuts)] if cuts else text,
            tuple(ids),
            (log(reply.p),) * len(ids),
            "stop" if cuts or ids[-1] in backbone.stop_ids else "length",
            len(request.prompt_ids) + len(request.begun_ids),
            tuple(self._listed(token, reply, request.top_logprobs) for token in ids) if request.top_logprobs else (),
        )

    def _up_to_stop(self, ids: list[int], stops: Sequence[str]) -> list[int]:
        for count in range(1, len(ids) + 1):
            if any(stop in self.backbone.decode(ids[:count]) for stop in stops):
                return ids[:count]
        return ids

    def _listed(self, token: int, reply: Reply, count: int) -> tuple[TokenLogprob, ...]:
        named = [self.backbone.encode(other)[0] for other in reply.others]
        order = list(dict.fromkeys([token, *named, *range(10, 40)]))[:count]
        return tuple(
            TokenLogprob(one, log(reply.p if not place else (1 - reply.p) / 2**place)) for place, one in enumerate(order)
        )


if TYPE_CHECKING:
    _: Engine = ScriptedEngine(Backbone.load(""), (), {})


def gold(example: Example, begun: str) -> Reply:
    """Computes: writes the gold chain, and answers with the last value of the steps that stand before; knows nothing at once."""
    if begun.endswith("Answer:"):
        return Reply(f" {last_value(begun)}\n")
    kept = example.chain[len(begun) :] if example.chain.startswith(begun) else f"\nAnswer: {last_value(begun)}"
    return Reply(kept)


def last_value(text: str) -> str:
    """What the last whole line of the form `... = value` says; 0 where there is none."""
    lines = [line for line in text.splitlines() if " = " in line]
    return lines[-1].rpartition(" = ")[2].strip() or "0" if lines else "0"
