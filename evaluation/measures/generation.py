"""Generated accuracy: the model writes greedily, and every step it wrote is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.decoding.served import complete_as_served
from engine.engine import Completion, Engine, GenerationRequest
from evaluation.measure import Readings
from evaluation.statistics import agreement, flips
from evaluation.task import Example, Task, comparable, is_right, reasoning_prompt, trace_of
from evaluation.tasks.generated import GeneratedTask

MAX_NEW_TOKENS = 128
LEAST_PARSED = 0.95  # share of the replies with an answer line, below which form is measured and not reasoning


@dataclass(frozen=True)
class Generation:
    """1 when every gold step was written, no written step is false, and the first answer is right.

    Without a verifier, the answer alone decides, and the unit of the readings says so.

    Parts: `answer_right`, `step_validity` (share of the written steps that hold), `parsed` (an answer line was written),
    `trace_tokens` (of the whole reply, its answer line among them), `num_steps` (lines beside the answer line).
    """

    name: str = "generation"
    version: int = 2
    unit: str = "share right in every step"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        return self.judged(task, examples, complete_as_served(engine, backbone, self.requests(backbone, profile, examples)))

    def requests(self, backbone: Backbone, profile: str | None, examples: Sequence[Example]) -> list[GenerationRequest]:
        return [
            GenerationRequest(backbone.chat_ids(reasoning_prompt(e)), profile, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0)
            for e in examples
        ]

    def judged(self, task: Task, examples: Sequence[Example], completions: Sequence[Completion]) -> Readings:
        values: list[float] = []
        parts: dict[str, list[float]] = {
            name: [] for name in ("answer_right", "step_validity", "parsed", "trace_tokens", "num_steps", "_answer")
        }
        for example, completion in zip(examples, completions, strict=True):
            trace = trace_of(completion.text)
            right = float(is_right(task, example, completion.text))
            if isinstance(task, GeneratedTask):
                check = task.check(example, completion.text)
                values.append(float(check.all_right))
                parts["step_validity"].append(check.validity)
            else:
                values.append(right)
                parts["step_validity"].append(float("nan"))
            parts["answer_right"].append(right)
            parts["parsed"].append(float(trace.answer is not None))
            parts["trace_tokens"].append(float(len(completion.token_ids)))
            parts["num_steps"].append(float(len(trace.steps) + len(trace.after)))
            parts["_answer"].append(_number(trace.answer))
        return Readings.of(
            self,
            task,
            examples,
            values,
            parts,
            unit=self.unit if isinstance(task, GeneratedTask) else "share right",
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Shares of items that went from right to wrong and back, their exact McNemar test, and how many got the same answer.

        Agreement is of answers, right or wrong; None where the stored readings of the backbone do not hold them.
        """
        found = flips(base.values, adapted.values)
        before, after = (side.parts.get("_answer") for side in (base, adapted))
        return {
            "negative_flips": found.negative,
            "positive_flips": found.positive,
            "flips_p_value": found.p_value,
            "agreement": agreement(before, after) if before and after else None,
        }


def _number(answer: str | None) -> float:
    """Equal for answers that say the same, and 0 for none: a part holds numbers."""
    return 0.0 if answer is None else float(1 + int(hashlib.sha256(comparable(answer).encode()).hexdigest()[:12], 16))


def write_all(
    engine: Engine, backbone: Backbone, profile: str | None, tasks: Sequence[tuple[Generation, Task, Sequence[Example]]]
) -> list[Readings]:
    """The readings of several tasks, written in shared batches: a few long batches take less time than many short ones."""
    requests = [measure.requests(backbone, profile, examples) for measure, _, examples in tasks]
    completions = iter(complete_as_served(engine, backbone, [request for one_task in requests for request in one_task]))
    found = []
    for measure, task, examples in tasks:
        own = [next(completions) for _ in examples]
        tokens = sum(completion.prompt_tokens + len(completion.token_ids) for completion in own)
        found.append(replace(measure.judged(task, examples, own), tokens=tokens))
    return found
