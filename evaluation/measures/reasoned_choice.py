"""Choice after reasoning: which option the model finds likeliest once it has written its own steps.

Direct choice accuracy reads no trace, and written answers must be right word for word: between the two, this one shows what the
steps do for the answer, and needs closed options alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.measure import Readings
from evaluation.measures.choice import options_of
from evaluation.measures.traces import greedy_replies
from evaluation.task import Example, Task, answer_line, is_right, reasoning_prompt, trace_of
from evaluation.tasks.generated import GeneratedTask


@dataclass(frozen=True)
class ReasonedChoice:
    """1 when the right option scores highest after the steps that the profile wrote greedily, else 0 (a tie is wrong).

    Options are scored as choice accuracy scores them: by their sum where the prompt lists them, else by their mean.

    Parts: `written_right` (the answer that was written), `parsed` (one was), `step_validity` (share of the written steps that
    hold; NaN without a verifier), `num_steps`, `trace_tokens` (of the steps), `margin` in nats.
    """

    name: str = "reasoned_choice"
    version: int = 1
    unit: str = "share right"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        options = [options_of(task, example) for example in examples]
        prompts = [backbone.chat_ids(reasoning_prompt(example)) for example in examples]
        written = greedy_replies(engine, backbone, profile, examples)
        traces = [trace_of(reply.text) for reply in written]
        steps = [tuple(backbone.encode("".join(f"{step}\n" for step in trace.steps))) for trace in traces]
        prefix = len(backbone.encode(answer_line("").rstrip()))
        asked = [
            Continuation(prompt, (*before, *backbone.encode(answer_line(option))), scored_from=len(before) + prefix)
            for prompt, before, listed in zip(prompts, steps, options, strict=True)
            for option in listed
        ]
        found = iter(engine.score(asked, profile))
        margins = []
        for example, listed in zip(examples, options, strict=True):
            scored = [next(found) for _ in listed]
            whole = example.choices is not None and example.listed
            used = [sum(tokens) if whole else sum(tokens) / len(tokens) for tokens in scored]
            margins.append(used[0] - max(used[1:]))
        checked = zip(examples, written, strict=True)
        return Readings.of(
            self,
            task,
            examples,
            [float(margin > 0) for margin in margins],
            {
                "written_right": [float(is_right(task, e, reply.text)) for e, reply in zip(examples, written, strict=True)],
                "parsed": [float(trace.answer is not None) for trace in traces],
                "step_validity": [
                    task.check(e, c.text).validity if isinstance(task, GeneratedTask) else math.nan for e, c in checked
                ],
                "num_steps": [float(len(trace.steps)) for trace in traces],
                "trace_tokens": [float(len(before)) for before in steps],
                "margin": margins,
            },
        )
