"""Trace length: how much is written before the answer, in tokens and steps, beside every measure that length moves.

Neither direction is better: a shorter trace after a fit is not a worse one, and the measures of steps move with it mechanically.
Accuracy by length is observed, not caused: long traces are those of hard problems. The measure `budget` intervenes instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.backbone import Backbone
from engine.decoding.answer import ANSWER_CUE
from engine.decoding.budget import ids_within
from engine.decoding.chain import parted_by_any
from engine.engine import Completion, Engine
from evaluation.measure import Readings
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.measures.traces import greedy_replies
from evaluation.statistics import paired_change
from evaluation.task import Example, Task, is_right, trace_of


@dataclass(frozen=True)
class TraceLength:
    """Natural log of 1 + the trace's tokens, so that a change is that of log length, and a trace that vanished still counts.

    A step is a line that holds text. A reply that was cut off has a trace of at least this length; `cut` counts those apart.

    Parts: `trace_tokens`, `num_steps`, `cut`, `answer_right`.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "trace_length"
    version: int = 1
    unit: str = "log trace tokens"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        replies = greedy_replies(engine, backbone, profile, examples, self.max_new_tokens)
        lengths = [trace_tokens(backbone, reply) for reply in replies]
        traces = [trace_of(reply.text) for reply in replies]
        return Readings.of(
            self,
            task,
            examples,
            [math.log1p(length) for length in lengths],
            {
                "trace_tokens": [float(length) for length in lengths],
                "num_steps": [float(len(trace.steps)) for trace in traces],
                "cut": [
                    float(trace.answer is None and reply.finish_reason == "length")
                    for trace, reply in zip(traces, replies, strict=True)
                ],
                "answer_right": [
                    float(is_right(task, example, reply.text)) for example, reply in zip(examples, replies, strict=True)
                ],
            },
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Of both sides quartiles of tokens, median steps and accuracy by tercile of own length; the factor of the length.

        `length_factor` is the geometric mean over the items of (1 + adapted tokens) / (1 + base tokens), with its 95 % interval.
        """
        change = paired_change(base.values, adapted.values, base.clusters)
        found: dict[str, float | None] = {
            "length_factor": math.exp(change.mean),
            "length_factor_low": math.exp(change.low),
            "length_factor_high": math.exp(change.high),
        }
        for side, readings in (("base", base), ("adapted", adapted)):
            tokens = np.asarray(readings.parts["trace_tokens"])
            for name, share in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
                found[f"{side}_tokens_{name}"] = float(np.quantile(tokens, share))
            found[f"{side}_steps_median"] = float(np.median(readings.parts["num_steps"]))
            terciles = np.array_split(np.asarray(readings.parts["answer_right"])[tokens.argsort(kind="stable")], 3)
            for name, right in zip(("short", "middle", "long"), terciles, strict=True):
                found[f"{side}_right_{name}"] = float(right.mean()) if len(right) else None
        return found


def trace_tokens(backbone: Backbone, reply: Completion) -> int:
    """Tokens before the answer cue, a chain and its markers among them; all but an end token where there is none."""
    parts = parted_by_any(reply.text)
    answer = reply.text if parts is None else parts.answer
    after = answer[len(answer.partition(ANSWER_CUE)[0]) :]
    return len(ids_within(backbone, reply.token_ids, reply.text[: len(reply.text) - len(after)]))
