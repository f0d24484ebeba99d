"""Thought tracing: what somebody in a story thinks, followed step by step as weighted hypotheses (Kim et al., arXiv 2502.11881).

Hypotheses are written after the first step and propagated through each further one; where the agent acts, each is weighed by
how likely it makes the action, and a collapsed set is drawn anew. Differences to the published code: weights accumulate over the
steps; an action is never part of the prompt that makes the thought which is weighed by it; verdicts are the
probabilities of writing each option, and what is no verdict is left out instead of counting as the least likely one.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import cast

from adapters.backbone import Backbone
from engine.decoding import tracing_prompts as say
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.hypotheses import Hypotheses, expected_likelihood
from engine.decoding.tracing import Tracing
from engine.engine import Completion, Continuation, Engine, GenerationRequest
from engine.errors import PromptTooLong
from engine.profile import DecodingPolicy

_MIN_DIVERSITY = 0.25  # below it the hypotheses say the same, and are reworded
_NOBODY = "nobody was named whose thoughts are asked about"
Ask = Sequence[GenerationRequest] | Sequence[Continuation]
Answers = Sequence[Completion] | Sequence[tuple[float, ...]]


@dataclass(frozen=True)
class Step:
    """A part of the story, up to and with an action of the agent; None where none follows."""

    state: str
    action: str | None

    @property
    def text(self) -> str:
        return f"{self.state} {self.action or ''}".strip()


@dataclass(frozen=True)
class Traced:
    """`hypotheses` after each step. `story`: what the question is asked of; the story itself where nothing could be traced.

    `why` says why nothing was, as a clause; empty where something was.
    """

    story: str
    agent: str = ""
    steps: tuple[Step, ...] = ()
    hypotheses: tuple[Hypotheses, ...] = ()
    why: str = ""

    @property
    def is_traced(self) -> bool:
        return bool(self.hypotheses)


Rounds = Generator[Ask, Answers, Traced]


@dataclass(frozen=True)
class ThoughtTracing:
    """Asks as rounds of requests or of continuations to score, so that an engine and a service run the same."""

    backbone: Backbone
    spec: Tracing = field(default_factory=Tracing)
    profile: str | None = None
    seed: int = 0

    def rounds(self, story: str, question: str) -> Rounds:
        """Untraced where a prompt does not fit into the context, or where the thoughts would take more than half of it."""
        return self._fitting(story, self._traced(story, question))

    def filtered(self, story: str, question: str) -> Rounds:
        """The two-call perspective filter: the story as far as the agent knows it. What is empty leaves the story as it is."""
        return self._fitting(story, self._known(story, question))

    def _fitting(self, story: str, asking: Rounds) -> Rounds:
        try:
            found = yield from asking
        except PromptTooLong:
            return Traced(story, why="a prompt of the tracing does not fit into the context")
        if 2 * len(self.backbone.encode(found.story)) > self.backbone.context_length:
            return Traced(story, why="the story with its thoughts takes more than half of the context")
        return found

    def _traced(self, story: str, question: str) -> Rounds:
        name = say.line((yield from self._write([say.agent(story, question)]))[0]).strip(" .:\"'")
        if not name:
            return Traced(story, why=_NOBODY)
        steps = yield from self._steps(story, name)
        before = ["".join(f"{step.text} " for step in steps[:place]).strip() for place in range(len(steps))]
        asked = [say.perceives(past, step.state or "nothing new", name) for past, step in zip(before, steps, strict=True)]
        perceived = [say.line(reply) for reply in (yield from self._write(asked))]
        first, count = steps[0], self.spec.num_hypotheses
        wanted = say.first_thoughts(first.state, perceived[0], first.action, name, count)
        texts = say.listed((yield from self._write([wanted], whole=True))[0], count)
        if not texts:
            return Traced(story, name, steps, why="no numbered list of thoughts was written")
        hypotheses = Hypotheses.alike(texts)
        found = [hypotheses]
        for place in range(1, len(steps)):
            step = steps[place]
            past = f"{before[place]} {step.state}".strip()  # without the action that the thoughts are weighed by
            asked = [say.next_thought(past, perceived[place], text, name) for text in hypotheses.texts]
            written = [say.line(reply) for reply in (yield from self._write(asked))]
            hypotheses = hypotheses.become([new or old for new, old in zip(written, hypotheses.texts, strict=True)])
            if step.action is not None:
                hypotheses = yield from self._weighed(hypotheses, past, step.action, name, place)
            found.append(hypotheses)
        chain = [(step.text, held.likeliest()) for step, held in zip(steps, found, strict=True)]
        return Traced(say.with_thoughts(story, name, chain), name, steps, tuple(found))

    def _known(self, story: str, question: str) -> Rounds:
        name = say.line((yield from self._write([say.agent(story, question)]))[0]).strip(" .:\"'")
        if not name:
            return Traced(story, why=_NOBODY)
        num_tokens = 2 * len(self.backbone.encode(story))
        known = say.line((yield from self._write([say.known_events(story, name)], max_tokens=num_tokens))[0])
        return Traced(known or story, name)

    def _steps(self, story: str, name: str) -> Generator[Ask, Answers, tuple[Step, ...]]:
        """The story cut after each action of the agent; what goes beyond the most steps is one of them."""
        parts = say.sentences(story)
        verdicts = yield from self._judge([say.acts(story, part, name) for part in parts], say.YES_NO)
        steps, state = list[Step](), list[str]()
        for part, (yes, no) in zip(parts, verdicts, strict=True):
            if yes > no and len(steps) < self.spec.max_steps - 1:
                steps.append(Step(" ".join(state), part))
                state = []
            else:
                state.append(part)
        return (*steps, Step(" ".join(state), None)) if state or not steps else tuple(steps)

    def _weighed(
        self, hypotheses: Hypotheses, past: str, action: str, name: str, place: int
    ) -> Generator[Ask, Answers, Hypotheses]:
        asked = [say.likely(past, text, action, name) for text in hypotheses.texts]
        verdicts = yield from self._judge(asked, say.LETTERS)
        weighed = hypotheses.weighed([expected_likelihood(logprobs) for logprobs in verdicts])
        if weighed.has_collapsed:
            return weighed.resampled(random.Random(f"{self.seed}/{place}"))
        if weighed.diversity >= _MIN_DIVERSITY:
            return weighed
        again = [say.reworded(text) for text in weighed.texts]
        replies = yield from self._write(again, temperature=1.0, seed=f"{self.seed}/{place}/words")
        return weighed.become([say.line(reply) or text for reply, text in zip(replies, weighed.texts, strict=True)])

    def _write(
        self,
        prompts: Sequence[str],
        whole: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: str = "",
    ) -> Generator[Ask, Answers, list[str]]:
        """One line each, or (`whole`) one for every hypothesis."""
        limit = max_tokens or self.spec.max_thought_tokens * (self.spec.num_hypotheses if whole else 1)
        asked = [
            GenerationRequest(
                ids,
                self.profile,
                min(limit, self.backbone.context_length - len(ids)),
                temperature=temperature,
                top_p=1.0,
                seed=random.Random(f"{seed}/{place}").getrandbits(31),
                policy=DecodingPolicy(),
            )
            for place, ids in enumerate(self._fits(prompt, 1) for prompt in prompts)
        ]
        answers = yield asked
        return [completion.text for completion in cast(Sequence[Completion], answers)]

    def _judge(self, prompts: Sequence[str], letters: Sequence[str]) -> Generator[Ask, Answers, list[tuple[float, ...]]]:
        """The log-probability of answering with each letter."""
        prefix = len(self.backbone.encode(ANSWER_CUE))
        replies = [tuple(self.backbone.encode(f"{ANSWER_CUE} {letter}")) for letter in letters]
        longest = max(map(len, replies))
        asked = [Continuation(ids, reply, prefix) for ids in [self._fits(one, longest) for one in prompts] for reply in replies]
        answers = yield asked
        sums = [sum(row) for row in cast(Sequence[tuple[float, ...]], answers)]
        return [tuple(sums[first : first + len(letters)]) for first in range(0, len(sums), len(letters))]

    def _fits(self, prompt: str, num_more: int) -> tuple[int, ...]:
        ids, limit = self.backbone.chat_ids(prompt), self.backbone.context_length
        if len(ids) + num_more > limit:
            raise PromptTooLong(
                f"A prompt of thought tracing takes at most {limit} tokens here, but got {len(ids)}. Shorten the story."
            )
        return ids


def run_rounds(engine: Engine, asking: Sequence[Rounds], profile: str | None = None) -> list[Traced]:
    """All of them together: what several ask at the same time is one call of the engine."""
    found: dict[int, Traced] = {}
    asks: dict[int, Ask] = {}

    def go_on(index: int, answers: Answers | None) -> None:
        try:
            asks[index] = next(asking[index]) if answers is None else asking[index].send(answers)
        except StopIteration as done:
            found[index] = done.value

    for index in range(len(asking)):
        go_on(index, None)
    while asks:
        now, asks = asks, {}
        writing = {index: [one for one in ask if isinstance(one, GenerationRequest)] for index, ask in now.items()}
        judging = {index: [one for one in ask if isinstance(one, Continuation)] for index, ask in now.items()}
        written = iter(engine.complete([one for part in writing.values() for one in part]) if any(writing.values()) else ())
        scored = iter(engine.score([one for part in judging.values() for one in part], profile) if any(judging.values()) else ())
        for index in now:
            go_on(index, [next(written) for _ in writing[index]] or [next(scored) for _ in judging[index]])
    return [found[index] for index in range(len(asking))]
