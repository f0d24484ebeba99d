"""An engine over a toy distribution: at every place one token has probability `p`, all others share the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from adapters.adapter import Stack
from adapters.backbone import Backbone
from engine.engine import Completion, Continuation, Delta, Engine, EngineStats, GenerationRequest
from engine.profile import Profile
from evaluation.task import DIRECT, Example, answer_line

Expect = Callable[[tuple[int, ...]], tuple[int, float]]
"""From the ids written so far to the token that is likeliest next, and its probability."""
WRONG_TOKEN = 7  # what a mind that lost the thread expects


@dataclass(frozen=True)
class Mind:
    """What the toy backbone can do. `writes_steps`: how many gold steps it writes before the answer; None is all of them."""

    certainty: float = 0.9
    solves: bool = True
    writes_steps: int | None = None
    reads_steps: bool = True  # the answer grows likelier with every gold step that stands before it
    gullible: bool = False  # ... and with any other line
    # The answer that it draws from the lines before, whatever is right.
    concludes: Callable[[Example, list[str]], str] | None = None


class ToyEngine:
    """Knows the examples by their questions. Any loaded weight that is not 0 halves the certainty, and spoils what is written."""

    def __init__(self, backbone: Backbone, examples: Sequence[Example], mind: Mind | None = None) -> None:
        self.backbone, self.mind = backbone, mind or Mind()
        self._examples = list(examples)
        self._minds: dict[str, Mind] = {}
        self._profiles: dict[str, Profile] = {}
        self.num_scored = 0

    def load(self, name: str, profile: Profile) -> None:
        updates = Stack(profile.adapters).contribution().low_rank.values()
        harmed = any(bool((update.b_OR @ update.a_RI).any()) for update in updates)
        self._minds[name] = Mind(self.mind.certainty / 2, False, reads_steps=False) if harmed else self.mind
        self._profiles[name] = profile

    def profile(self, name: str) -> Profile:
        return self._profiles[name]

    def think(self, name: str, mind: Mind) -> None:
        """Makes a name think otherwise than the backbone."""
        self._minds[name] = mind
        self._profiles.setdefault(name, Profile())

    def refresh(self, name: str) -> None:
        self._minds[name]

    def unload(self, name: str) -> None:
        del self._minds[name]

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        async def stream() -> AsyncIterator[Delta]:
            done = self.complete([request])[0]
            yield Delta(done.text, None, None, done.finish_reason)

        return stream()

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        found = []
        for request in requests:
            expect, ids = self._expecting(request.prompt_ids, request.profile), []
            while len(ids) < request.max_new_tokens and (not ids or ids[-1] not in self.backbone.stop_ids):
                ids.append(expect((*request.begun_ids, *ids))[0])
            ended = ids[-1] in self.backbone.stop_ids
            found.append(
                Completion(
                    self.backbone.decode(ids),
                    tuple(ids),
                    (0.0,) * len(ids),
                    "stop" if ended else "length",
                    len(request.prompt_ids) + len(request.begun_ids),
                )
            )
        return found

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        self.num_scored += len(continuations)
        vocabulary, found = len(self.backbone.tokenizer), []
        for asked in continuations:
            expect, row = self._expecting(asked.prompt_ids, profile), []
            for index in range(asked.scored_from, len(asked.ids)):
                token, p = expect(asked.ids[:index])
                row.append(log(p) if token == asked.ids[index] else log((1 - p) / (vocabulary - 1)))
            found.append(tuple(row))
        return found

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"score", "generate"})

    def stats(self) -> EngineStats:
        return EngineStats()

    def _expecting(self, prompt_ids: tuple[int, ...], profile: str | None) -> Expect:
        mind = self.mind if profile is None else self._minds[profile]
        prompt, end = self.backbone.decode(prompt_ids), int(self.backbone.tokenizer.eos_token_id)
        example = next(example for example in self._examples if example.question in prompt)
        encode = self.backbone.encode
        if prompt == example.question:  # plain text
            lines = [encode(f" {example.answer}")]
        else:
            steps = () if DIRECT in prompt else example.steps[: mind.writes_steps]
            lines = [*(encode(f"{step}\n") for step in steps), [*encode(answer_line(example.answer)), end]]
        answer, newline = encode(answer_line(example.answer)), encode("\n")[0]
        gold = [encode(f"{step}\n") for step in example.steps]

        def expect(written: tuple[int, ...]) -> tuple[int, float]:
            if not mind.solves:
                return (end if len(written) > 5 else WRONG_TOKEN), mind.certainty
            last = max((index + 1 for index, token in enumerate(written) if token == newline), default=0)
            current, before = list(written[last:]), written[:last]
            if mind.concludes:
                number, read = before.count(newline), self.backbone.decode(before).splitlines()
                said = [*encode(answer_line(mind.concludes(example, read))), end]
                begun = bool(current) and current == said[: len(current)]
                line = said if begun or number >= len(lines) - 1 else lines[number]
                fits = current == line[: len(current)] and len(current) < len(line)
                return (line[len(current)] if fits else end), mind.certainty
            known = sum(_starts(before, gold[: count + 1]) for count in range(len(gold)))
            if mind.gullible:
                known = min(before.count(newline), len(gold))
            line = answer if current and current == answer[: len(current)] else lines[min(before.count(newline), len(lines) - 1)]
            if line is answer:
                share = known / len(gold) if mind.reads_steps and gold else 0.5
                p = mind.certainty * (0.2 + 0.8 * share)
                return (answer[len(current)] if len(current) < len(answer) else end), p
            if current != line[: len(current)] or len(current) == len(line):
                return end, mind.certainty
            return line[len(current)], mind.certainty

        return expect


def _starts(ids: tuple[int, ...], lines: Sequence[Sequence[int]]) -> bool:
    joined = tuple(token for line in lines for token in line)
    return ids[: len(joined)] == joined


if TYPE_CHECKING:
    _: Engine = ToyEngine(Backbone.load(""), ())
