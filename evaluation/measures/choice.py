"""Choice by likelihood: which option's text the model finds likeliest as the answer (cloze), never its letter.

Length, the answer prefix left out: where the prompt lists the options, an option's score is the log-probability of writing it,
since all but its first tokens are copied and a mean over them would favour long options. Where it does not, the score is the
mean log-probability per token, so that long options do not lose by their length. `parts` holds both readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.task import Example, Task, answer_line, direct_prompt
from evaluation.tasks.generated import GeneratedTask


@dataclass(frozen=True)
class ChoiceAccuracy:
    """1 when the right option scores highest, else 0 (a tie is wrong)."""

    name: str = "choice_accuracy"
    version: int = 2
    unit: str = "share right"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        options = [options_of(task, example) for example in examples]
        prefix = len(backbone.encode(answer_line("").rstrip()))
        asked = [
            Continuation(backbone.chat_ids(direct_prompt(example)), tuple(backbone.encode(answer_line(option))))
            for example, listed in zip(examples, options, strict=True)
            for option in listed
        ]
        found = iter(engine.score(asked, profile))
        values, margins, gold, by_mean, by_sum = [], [], [], [], []
        for example, listed in zip(examples, options, strict=True):
            scored = [next(found)[prefix:] for _ in listed]
            sums = [sum(tokens) for tokens in scored]
            means = [sum(tokens) / len(tokens) for tokens in scored]
            used = sums if example.choices is not None and example.listed else means
            margins.append(used[0] - max(used[1:]))
            values.append(float(margins[-1] > 0))
            gold.append(means[0])
            by_mean.append(float(means[0] > max(means[1:])))
            by_sum.append(float(sums[0] > max(sums[1:])))
        return Readings.of(
            self,
            task,
            examples,
            values,
            {
                "margin": margins,
                "gold_nats_per_token": gold,
                "right_by_mean": by_mean,
                "right_by_sum": by_sum,
            },
        )


def options_of(task: Task, example: Example) -> tuple[str, ...]:
    """The right answer first, then its rivals."""
    if isinstance(task, GeneratedTask):
        return (example.answer, *task.problem(example.id).rivals)
    if example.choices is None or len(set(example.choices)) < 2:
        raise DataError(
            f"Choice accuracy needs two or more different options, but example {example.id!r} of {task.name!r} has "
            f"{list(example.choices or ())}. Give the task choices, or measure it by generation."
        )
    return (example.answer, *(choice for choice in dict.fromkeys(example.choices) if choice != example.answer))
