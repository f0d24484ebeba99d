"""Choice by likelihood: which option's text the model finds likeliest as the answer (cloze), never its letter.

Length, the answer prefix left out: where the prompt lists the options, an option's score is the log-probability of writing it,
since all but its first tokens are copied and a mean over them would favour long options. Where it does not, the score is the
mean log-probability per token, so that long options do not lose by their length. `parts` holds both readings.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.errors import DataError
from evaluation.measure import Readings
from evaluation.statistics import agreement, flips
from evaluation.task import Example, Task, answer_line, direct_prompt
from evaluation.tasks.generated import GeneratedTask


@dataclass(frozen=True)
class ChoiceAccuracy:
    """1 when the right option scores highest, else 0 (a tie is wrong).

    Parts: `margin` over the best wrong option, `gold_nats_per_token`, both readings of the length, and `_chosen`, the option's
    place (0 is the right one).
    """

    name: str = "choice_accuracy"
    version: int = 3
    unit: str = "share right"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        scored = score_options(engine, backbone, profile, task, examples)
        margins = [found.used[0] - max(found.used[1:]) for found in scored]
        return Readings.of(
            self,
            task,
            examples,
            [float(margin > 0) for margin in margins],
            {
                "margin": margins,
                "gold_nats_per_token": [found.means[0] for found in scored],
                "right_by_mean": [float(found.means[0] > max(found.means[1:])) for found in scored],
                "right_by_sum": [float(found.sums[0] > max(found.sums[1:])) for found in scored],
                "_chosen": [float(max(range(len(found.used)), key=found.used.__getitem__)) for found in scored],
            },
        )

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Shares of items that went from right to wrong and back, their exact McNemar test, and how many got the same option."""
        found = flips(base.values, adapted.values)
        return {
            "negative_flips": found.negative,
            "positive_flips": found.positive,
            "flips_p_value": found.p_value,
            "agreement": agreement(base.parts["_chosen"], adapted.parts["_chosen"]),
        }


@dataclass(frozen=True)
class ScoredOptions:
    """Log-probabilities of an example's options, the right one first; `used` is the reading that decides."""

    sums: tuple[float, ...]
    means: tuple[float, ...]
    used: tuple[float, ...]


def score_options(
    engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]
) -> list[ScoredOptions]:
    options = [options_of(task, example) for example in examples]
    prefix = len(backbone.encode(answer_line("").rstrip()))
    asked = [
        Continuation(backbone.chat_ids(direct_prompt(example)), tuple(backbone.encode(answer_line(option))))
        for example, listed in zip(examples, options, strict=True)
        for option in listed
    ]
    scored = iter(engine.score(asked, profile))
    found = []
    for example, listed in zip(examples, options, strict=True):
        tokens = [next(scored)[prefix:] for _ in listed]
        sums = tuple(sum(one) for one in tokens)
        means = tuple(sum(one) / len(one) for one in tokens)
        found.append(ScoredOptions(sums, means, sums if example.choices is not None and example.listed else means))
    return found


def options_of(task: Task, example: Example) -> tuple[str, ...]:
    """The right answer first, then its rivals."""
    if isinstance(task, GeneratedTask):
        return (example.answer, *task.problem(example.id).rivals)
    if example.choices is None or len(set(example.choices)) < 2:
        raise DataError(
            f"An answer is chosen from two or more different options, but example {example.id!r} of {task.name!r} has "
            f"{list(example.choices or ())}. Give the task choices, or measure it by generation."
        )
    return (example.answer, *(choice for choice in dict.fromkeys(example.choices) if choice != example.answer))


def listing(task: Task, example: Example, count: int) -> Example:
    """The example with a prompt that lists `count` choices, or all where it has no more: the right one among its rivals.

    Which ones and in what order, the example's id decides: the same for ever.
    """
    right, *rivals = options_of(task, example)
    drawn = random.Random(f"choices/{example.id}")
    choices = [right, *drawn.sample(rivals, min(count - 1, len(rivals)))]
    drawn.shuffle(choices)
    return replace(example, choices=tuple(choices), listed=True)
