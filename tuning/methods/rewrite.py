"""Self-distillation by rewriting: the backbone says every target in its own words, and learns those that are right.

SDFT (Yang et al. 2024, arXiv 2402.13669, section 3; the phrases are those of its code). What the backbone says itself is near to
what it would have said: fitting it moves the weights less than fitting foreign words. Here the rewrites are greedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from adapters.backbone import Backbone
from adapters.spec import Choices
from engine.engine import Completion, GenerationRequest
from evaluation.task import Example, Task, comparable, is_right
from tuning.batches import Row, check_rationales, rows_of, turns_of
from tuning.methods.method import Given
from tuning.methods.supervised import Prepared, Supervised, SupervisedSpec, check_room
from tuning.rollouts import rollouts, room_for

REQUEST = (
    "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a guide, write "
    "your own response.\n\n### Instruction:\n{asked}\n\n### Reference Answer:\n{reply}\n\n### Response:"
)
BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
BANNED_OPENING = "Your turn"
MAX_NEW_TOKENS = 160

Verdict = Literal["kept", "wrong", "banned", "unfinished", "no_room"]
VERDICTS: tuple[Verdict, ...] = ("kept", "wrong", "banned", "unfinished", "no_room")


class RewriteSpec(SupervisedSpec):
    """`keep` any is the control: wrong rewrites are learnt too. `target` and `prompt` are those of sft."""

    written_first: ClassVar[tuple[str, ...]] = ("num_rewrites", "num_replay")

    name: Literal["rewrite"] = "rewrite"
    target: Annotated[Literal["answer", "rationale", "mixed"], Choices(("answer", "rationale", "mixed"))] = "answer"
    prompt: Annotated[Literal["reasoning", "matching"], Choices(("reasoning", "matching"))] = "reasoning"
    keep: Literal["right", "any"] = "right"
    num_rewrites: int = 320  # rows, at most: no others are learnt

    @model_validator(mode="after")
    def _rewrites(self) -> RewriteSpec:
        if self.num_rewrites < 1:
            raise ValueError(f"num_rewrites must be at least 1, but got {self.num_rewrites}.")
        return self


@dataclass(frozen=True)
class Rewrite(Supervised):
    spec: RewriteSpec
    spec_type = RewriteSpec

    def check(self, examples: Sequence[Example], task: Task) -> None:
        check_rationales(examples, self.spec.target)

    def check_room(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        read = self.rewritten(examples)
        check_room(backbone, rows_of(backbone, read, self.spec.target, self.spec.prompt), read)

    def rewritten(self, examples: Sequence[Example]) -> Sequence[Example]:
        """No more rows than the fit can see."""
        return examples[: min(self.spec.num_rewrites, self.spec.steps * self.spec.batch_size)]

    def prepare(self, given: Given) -> Prepared:
        """A rewrite that is not kept leaves its row as it was."""
        spec, backbone, task = self.spec, given.backbone, self.required(given.task)
        examples = self.rewritten(given.examples)
        left = None if spec.token_budget is None else spec.token_budget - given.num_written
        rows = within(left, rows_of(backbone, examples, spec.target, spec.prompt))
        examples = examples[: len(rows)]
        asked: dict[int, GenerationRequest] = {}
        for index, example in enumerate(examples):
            prompt_ids = backbone.chat_ids(REQUEST.format(**turns_of(example, index, spec.target, spec.prompt)._asdict()))
            if room := room_for(backbone, prompt_ids, MAX_NEW_TOKENS):
                asked[index] = GenerationRequest(prompt_ids, None, room, temperature=0.0)
        with rollouts(backbone, directory=given.kept_in("rewrite"), on_chunk=given.alive) as writer:
            written = dict(zip(asked, writer.write(list(asked.values())), strict=True))
        verdicts = [verdict(task, example, written.get(index)) for index, example in enumerate(examples)]
        kept = ("kept", "wrong") if spec.keep == "any" else ("kept",)
        verbatim = 0
        for index, found in enumerate(verdicts):
            if found in kept:
                verbatim += comparable(written[index].text) == comparable(backbone.decode(rows[index].completion_ids))
                rows[index] = Row(rows[index].prompt_ids, written[index].token_ids)
        tally = Counter(verdicts)
        counts = {f"rewrites_{name}": tally[name] for name in VERDICTS} | {"rewrites_verbatim": verbatim}
        return Prepared(rows, writer.num_used, writer.num_generated, counts)


def within(budget: int | None, rows: list[Row]) -> list[Row]:
    """As many as the tokens pay for, each rewritten at the longest and then learnt once; one at least."""
    if budget is None:
        return rows
    costs = accumulate(len(row) + MAX_NEW_TOKENS for row in rows)
    return rows[: max(1, sum(cost <= budget for cost in costs))]


def verdict(task: Task, example: Example, written: Completion | None) -> Verdict:
    """What becomes of a rewrite: one that talks about the reference, that runs on, or that the task finds wrong is dropped."""
    if written is None:
        return "no_room"
    if written.finish_reason != "stop":
        return "unfinished"
    if written.text.startswith(BANNED_OPENING) or any(phrase in written.text.lower() for phrase in BANNED):
        return "banned"
    return "kept" if is_right(task, example, written.text) else "wrong"
