"""An engine with a scripted mind, which answers what thought tracing and the perspective filter ask about belief stories."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from idle_engine import IdleEngine

from adapters.backbone import Backbone
from engine.engine import Completion, Continuation, Delta, Engine, EngineStats, GenerationRequest
from engine.profile import DecodingPolicy, Profile
from evaluation.task import Example

Judge = Callable[[str, str], str]
"""From a thought and an action to the letter of the verdict; empty where it answers with none of them."""


def constant(thought: str, action: str) -> str:
    return "c"


@dataclass
class StoryMind(IdleEngine):
    """Answers by where the thing is, unless thoughts or a filtered story say where somebody believes it to be.

    With `knows` it follows what the owner sees; without, it says a place that is drawn at random.
    """

    backbone: Backbone
    examples: Sequence[Example]  # of first order: a story of its own each
    knows: bool = True
    judge: Judge = constant
    policy: DecodingPolicy = field(default_factory=DecodingPolicy)
    prompts: list[str] = field(default_factory=list)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"generate", "score"})

    def profile(self, name: str) -> Profile:
        return Profile(policy=self.policy)

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [self._completed(request) for request in requests]

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        done = self._completed(request)
        for token_id in done.token_ids:
            yield Delta("", token_id, -1.0)
        yield Delta(done.text, None, None, "stop")

    def stats(self) -> EngineStats:
        return EngineStats(generated_tokens={"": sum(map(len, self.prompts))})

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        found = []
        for asked in continuations:
            prompt = self.backbone.decode(asked.prompt_ids)
            self.prompts.append(prompt)
            said = self.backbone.decode(asked.ids).removeprefix("Answer:").strip()
            liked = self._likes(prompt, said)
            count = len(asked.ids) - asked.scored_from
            found.append((*(0.0,) * (count - 1), liked))
        return found

    def _completed(self, request: GenerationRequest) -> Completion:
        prompt = self.backbone.decode(request.prompt_ids)
        self.prompts.append(prompt)
        text = self._writes(prompt)
        ids = tuple(self.backbone.encode(text))
        return Completion(text, ids, (-1.0,) * len(ids), "stop", len(request.prompt_ids))

    def _words(self, prompt: str) -> tuple[str, str, str, str]:
        """Owner, thing, where it was and where it is."""
        groups = (example.group.split() for example in self.examples)
        return next((owner, thing, start, end) for _, owner, _, thing, start, end in groups if owner in prompt)

    def _writes(self, prompt: str) -> str:
        if "in other words" in prompt:
            return prompt.partition("meaning: ")[2].splitlines()[0]
        owner, thing, start, end = self._words(prompt)
        moved = _moved(prompt, thing)
        place = end if moved and "watches" in prompt else start
        if not self.knows:
            place = random.Random(prompt).choice((start, end))
        if "Give only the name" in prompt:
            return owner
        if "numbered list" in prompt:
            return "\n".join(f"{1 + index}. The {thing} is in the {place}, {word}." for index, word in enumerate(("yes", "so")))
        if "think now" in prompt:
            return f"The {thing} is in the {place}."
        if "Repeat only these" in prompt:
            told = prompt.partition("Story: ")[2].splitlines()[0]
            return told if place == end else re.sub(r"\w+ (moves|takes|shifts) the .*?\. ", "", told)
        return f"{owner} sees it."

    def _likes(self, prompt: str, said: str) -> float:
        if "do or say something" in prompt:
            sentence, name = re.findall(r"Sentence: (.*)", prompt)[0], re.findall(r"Does (\w+) do", prompt)[0]
            return 0.0 if (said == "a") == sentence.startswith(name) else -9.0
        if "How likely is it" in prompt:
            thought, action = re.findall(r"thinks: (.*)", prompt)[0], re.findall(r"this next: (.*)", prompt)[0]
            verdict = self.judge(thought, action)
            return 0.0 if verdict and said == verdict else -30.0
        _, thing, start, end = self._words(prompt)
        thoughts = re.findall(rf"thinks: .*the {thing} is in the (\w+)", prompt, re.I)
        return float(said == (thoughts[-1] if thoughts else end if _moved(prompt, thing) else start))


def _moved(text: str, thing: str) -> bool:
    return re.search(rf"\w+ (moves|takes|shifts) the {thing}", text) is not None


if TYPE_CHECKING:
    _: Engine = StoryMind(Backbone.load(""), ())
