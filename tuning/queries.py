"""What influence is asked about: the loss of a protected family, or of the domain, in the form that the search scores it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapters.backbone import Backbone
from evaluation.errors import DataError
from evaluation.measures.raw_text import PairPreference
from evaluation.retention import search_measure
from evaluation.task import Example, Task
from tuning.batches import Row, rows_of
from tuning.gradients import Weighted

DOMAIN = "domain"
ENOUGH = 50  # the gradient of fewer items is mostly noise


def domain_query(backbone: Backbone, examples: Sequence[Example]) -> list[Weighted]:
    """Nats per token of the right answer, asked for directly: the option that choice accuracy must find likeliest."""
    return [Weighted(row) for row in rows_of(backbone, examples, "answer", "matching")]


def family_query(backbone: Backbone, task: Task, examples: Sequence[Example]) -> list[Weighted]:
    """Of a written family, nats per token of the gold chain and answer; of what is only read, the loss of its own measure."""
    measure = search_measure(task)
    kind = "pair" if isinstance(measure, PairPreference) else measure.name
    if kind not in _QUERIES:
        raise DataError(
            f"Influence is asked about by a likelihood, but {task.name!r} has neither gold chains nor choices. Add a rationale "
            "to its rows, or protect another task."
        )
    return _QUERIES[kind](backbone, examples)


def _chains(backbone: Backbone, examples: Sequence[Example]) -> list[Weighted]:
    return [Weighted(row) for row in rows_of(backbone, examples, "rationale")]


def _texts(backbone: Backbone, examples: Sequence[Example]) -> list[Weighted]:
    return [Weighted(_after(backbone, example, example.answer)) for example in examples]


def _pairs(backbone: Backbone, examples: Sequence[Example]) -> list[Weighted]:
    """Minus the margin in nats: the right ending's loss counts, that of its rivals counts against it."""
    found: list[Weighted] = []
    for example in examples:
        rivals = [choice for choice in example.choices or () if choice != example.answer]
        endings = [(example.answer, 1.0), *((rival, -1.0 / len(rivals)) for rival in rivals)]
        rows = [(_after(backbone, example, ending), sign) for ending, sign in endings]
        found.extend(Weighted(row, sign * row.num_labels) for row, sign in rows)
    return found


def _after(backbone: Backbone, example: Example, ending: str) -> Row:
    """Plain text, without a chat template. They meet at a space, which belongs to the ending's first token."""
    return Row(tuple(backbone.encode(example.question.rstrip(" "))), tuple(backbone.encode(f" {ending.lstrip(' ')}")))


_QUERIES: dict[str, Callable[[Backbone, Sequence[Example]], list[Weighted]]] = {
    "chain_likelihood": _chains,
    "choice_accuracy": domain_query,
    "text_likelihood": _texts,
    "pair": _pairs,
}
