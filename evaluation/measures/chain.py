"""Likelihood of the gold chain: does the model still believe in the steps, under the prompt that it writes from?

The likelihood of the answer alone rises when answers are trained while the written chain dies; that of the whole chain does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.task import Example, Task, answer_line, reasoning_prompt
from evaluation.tasks.generated import GeneratedTask


@dataclass(frozen=True)
class ChainLikelihood:
    """Mean natural-log probability per token of the gold steps and the answer line.

    Parts: `step_margin`, the mean over the steps of what a step gets above its corrupted twin after the same gold steps, in nats
    per token of each; `answer`, the answer line's nats per token after the gold steps.
    """

    name: str = "chain_likelihood"
    version: int = 1
    unit: str = "nats per token"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        asked: list[Continuation] = []
        lengths: list[list[int]] = []
        for example in examples:
            prompt, steps = backbone.chat_ids(reasoning_prompt(example)), example.steps
            if not steps:
                raise DataError(
                    f"Chain likelihood needs a rationale, but example {example.id!r} of {task.name!r} has none. Add one."
                )
            pieces = [backbone.encode(f"{step}\n") for step in steps] + [backbone.encode(answer_line(example.answer))]
            lengths.append([len(piece) for piece in pieces])
            whole = tuple(token for piece in pieces for token in piece)
            asked.append(Continuation(prompt, (*whole, int(backbone.tokenizer.eos_token_id))))
            if isinstance(task, GeneratedTask):
                done: tuple[int, ...] = ()
                for piece, wrong in zip(pieces[:-1], task.problem(example.id).corrupted, strict=True):
                    asked.append(Continuation(prompt, (*done, *backbone.encode(f"{wrong}\n")), scored_from=len(done)))
                    done = (*done, *piece)
        found = iter(engine.score(asked, profile))
        values, margins, answers = [], [], []
        for pieces_lengths in lengths:
            gold = next(found)
            values.append(sum(gold) / len(gold))
            starts = [sum(pieces_lengths[:index]) for index in range(len(pieces_lengths))]
            by_piece = [_mean(gold[start : start + length]) for start, length in zip(starts, pieces_lengths, strict=True)]
            answers.append(by_piece[-1])
            if isinstance(task, GeneratedTask):
                wrong_means = [_mean(next(found)) for _ in pieces_lengths[:-1]]
                margins.append(_mean([right - wrong for right, wrong in zip(by_piece, wrong_means, strict=False)]))
        parts = {"answer": tuple(answers)} | ({"step_margin": tuple(margins)} if margins else {})
        return Readings.of(self, task, examples, values, parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
