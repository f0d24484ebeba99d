"""An engine that reads chains of sums as a reasoner would, and writes what it was told to write."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Completion, Continuation, Engine, GenerationRequest


class Reader(IdleEngine):
    """Believes true sums, follows a chain from the numbers it was given, and answers with the last result that it reached."""

    def __init__(self, backbone: Backbone, written: Mapping[str | None, Mapping[str, str]]) -> None:
        self.backbone, self.written = backbone, written  # by profile, by question

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        found = []
        for request in requests:
            prompt, texts = self.backbone.decode(request.prompt_ids), self.written[request.profile]
            text = next(text for question, text in texts.items() if question in prompt)
            found.append(Completion(text, tuple(self.backbone.encode(text)), (), "stop", len(request.prompt_ids)))
        return found

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        assert profile is None, "explanations are read with the adapter off"
        return [self._row(one) for one in continuations]

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"score", "generate"})

    def _row(self, asked: Continuation) -> tuple[float, ...]:
        steps = self.backbone.decode(asked.ids[: asked.scored_from or len(asked.ids)]).partition("Answer:")[0].splitlines()
        if not asked.scored_from:  # the steps themselves
            true = [_is_true(step) for step in steps]
            return tuple(math.log(0.9 if all(true) else 0.3) for _ in asked.ids)
        prompt = self.backbone.decode(asked.prompt_ids)
        known = set(re.findall(r"-?\d+", prompt)) or None  # without a question, what the first step says is taken
        result, followed = "", 0
        for step in steps:
            left, right = re.findall(r"-?\d+", step)[0], re.findall(r"-?\d+", step)[-1]
            if known is None or left in known:
                result, followed, known = right, followed + 1, {*(known or ()), right}
        answer = self.backbone.decode(asked.ids[asked.scored_from :]).strip()
        count = len(asked.ids) - asked.scored_from
        return tuple(math.log(min(0.9, 0.3 + 0.2 * followed) if answer == result else 0.1) / count for _ in range(count))


def _is_true(step: str) -> bool:
    left, _, right = step.partition("=")
    return bool(re.fullmatch(r"[-\d+* /]+", left)) and eval(left) == int(right)  # a sum that a test wrote


if TYPE_CHECKING:
    _: Engine = Reader(Backbone.load(""), {})
