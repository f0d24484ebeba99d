"""Explanation rationality: are the steps acceptable, relevant, sufficient, and consistent with the answer that follows them?

The likelihood forms need no judge. The profile writes, and the frozen backbone reads, adapter off, so that a change lies in what
was written. Every reading of an answer is its probability among the options (the gold answer and up to three wrong ones), so that
verbosity cannot win. The criteria stand in evaluation/rubrics/, with their sources.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.decoding.answer import ANSWER_CUE
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.measures.traces import greedy_replies
from evaluation.rubric import load_rubric
from evaluation.task import REASON, Example, Task, Trace, comparable, reasoning_prompt, trace_of
from evaluation.tasks.generated import GeneratedTask

RIVALS = 3
FLOOR = -5.0  # nats; below it an answer is hopeless, and how hopeless says nothing
PARTS = ("acceptability", "relevance", "sufficiency", "consistency", "necessity", "harmful", "num_steps", "explained")


@dataclass(frozen=True)
class Rationality:
    """Mean of relevance and sufficiency; a gain counts as far as acceptability and consistency allow (the rubric's rule).

    Parts: acceptability and consistency, probabilities; relevance (a step), sufficiency (all steps) and necessity (a step left
    out), in nats; harmful, the share of the steps that lower the gold answer's probability; num_steps; explained, 1 where there
    are steps and an answer. Who explains nothing supports nothing: the value is then 0, and the criteria are not measurable.

    Acceptable is what the backbone would accept: a wording that is new to it costs, too, so read it beside step validity. Where
    steps name every option (boxes), consistency is low for all, since the question is what picks one.
    """

    name: str = "rationality"
    version: int = 1
    unit: str = "nats of support"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        rows = likelihood_forms(engine, backbone, task, examples, written(engine, backbone, profile, examples))
        rubric = load_rubric()
        values = (rubric.combined(row) if row["explained"] else 0.0 for row in rows)
        return Readings.of(self, task, examples, values, {name: tuple(row[name] for row in rows) for name in PARTS})


def written(engine: Engine, backbone: Backbone, profile: str | None, examples: Sequence[Example]) -> list[Trace]:
    """What the profile explains, greedily."""
    return [trace_of(reply.text) for reply in greedy_replies(engine, backbone, profile, examples)]


def likelihood_forms(
    engine: Engine, backbone: Backbone, task: Task, examples: Sequence[Example], traces: Sequence[Trace]
) -> list[dict[str, float]]:
    """PARTS of every trace as the backbone reads it; the criteria are NaN where there are no steps or no answer."""
    layouts = [
        _Layout(backbone, example, trace, rivals(task, example, examples))
        for example, trace in zip(examples, traces, strict=True)
    ]
    found = iter(engine.score([asked for layout in layouts for asked in layout.asked], None))
    return [layout.read(found) for layout in layouts]


def rivals(task: Task, example: Example, examples: Sequence[Example]) -> tuple[str, ...]:
    """Up to three wrong answers: the task's own, the other choices, or else what other items are answered with."""
    if isinstance(task, GeneratedTask):
        others: Sequence[str] = task.problem(example.id).rivals
    elif example.choices is not None:
        others = example.choices
    else:
        others = [other.answer for other in examples]
    distinct = {comparable(answer): answer for answer in others if comparable(answer) != comparable(example.answer)}
    if not distinct:
        raise DataError(
            f"Rationality needs a wrong answer beside the right one, but {task.name!r} gave none for {example.id!r}. "
            "Give the task choices, or ask for more items."
        )
    chosen = list(distinct.values())
    return tuple(random.Random(example.id).sample(chosen, min(RIVALS, len(chosen))))


class _Layout:
    """What is asked about one trace, and how the answers are read off again."""

    def __init__(self, backbone: Backbone, example: Example, trace: Trace, wrong: Sequence[str]) -> None:
        self._steps = [backbone.encode(f"{step}\n") for step in trace.steps]
        self._head, self._end = backbone.encode(ANSWER_CUE), int(backbone.tokenizer.eos_token_id)
        self._backbone = backbone
        self._explained = bool(trace.steps and trace.answer)
        self.asked: list[Continuation] = []
        if not self._explained:
            return
        count, prompt = len(self._steps), backbone.chat_ids(reasoning_prompt(example))
        gold = (example.answer, *wrong)
        own = trace.answer or ""
        others = [answer for answer in gold if comparable(answer) != comparable(own)]
        self._options, self._own_options = len(gold), 1 + len(others)
        self.asked.append(Continuation(prompt, tuple(token for step in self._steps for token in step)))
        for kept in (*(range(end) for end in range(count + 1)), *(_without(count, left_out) for left_out in range(count))):
            self.asked += self._answers(prompt, kept, gold)
        self.asked += self._answers(backbone.chat_ids(REASON), range(count), (own, *others))

    def read(self, found: Iterator[tuple[float, ...]]) -> dict[str, float]:
        count = len(self._steps)
        if not self._explained:
            return {name: math.nan for name in PARTS} | {"num_steps": float(count), "explained": 0.0}
        tokens = next(found)
        ends = [sum(map(len, self._steps[:end])) for end in range(count + 1)]
        accepted = [math.exp(_mean(tokens[low:high])) for low, high in zip(ends, ends[1:], strict=False)]
        staircase = [_log_share(found, self._options) for _ in range(count + 1)]
        left_out = [_log_share(found, self._options) for _ in range(count)]
        gains = [after - before for before, after in zip(staircase, staircase[1:], strict=False)]
        return {
            "acceptability": _mean(accepted),
            "relevance": _mean(gains),
            "sufficiency": staircase[-1] - staircase[0],
            "consistency": math.exp(_log_share(found, self._own_options)),
            "necessity": _mean([staircase[-1] - without for without in left_out]),
            "harmful": _mean([float(gain < 0) for gain in gains]),
            "num_steps": float(count),
            "explained": 1.0,
        }

    def _answers(self, prompt: tuple[int, ...], kept: Sequence[int], answers: Sequence[str]) -> Iterator[Continuation]:
        before = (*(token for index in kept for token in self._steps[index]), *self._head)
        # With the end of the turn, or 1 would be at least as likely as 14.
        endings = ((*self._backbone.encode(f" {answer}"), self._end) for answer in answers)
        return (Continuation(prompt, (*before, *ending), scored_from=len(before)) for ending in endings)


def _log_share(found: Iterator[tuple[float, ...]], options: int) -> float:
    """Natural log of the first option's probability among all of them."""
    sums = [sum(next(found)) for _ in range(options)]
    top = max(sums)
    return max(FLOOR, sums[0] - top - math.log(sum(math.exp(value - top) for value in sums)))


def _without(count: int, left_out: int) -> list[int]:
    return [index for index in range(count) if index != left_out]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
