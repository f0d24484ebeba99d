"""Theory of mind: who believes what, scored by likelihood over the two containers in both orders of naming them.

The margin is the log-probability of writing the right container less that of the other, as the mean over both orders of the
options: log p(correct) - log p(reality) wherever the right answer is not where the thing is. Each container is right for half
of a set's items: a model that comes to lean to one of them, or to reality, loses on one twin what it wins on the other, and the
mean margin over sets tells only how well the two are kept apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.engine import Continuation, Engine
from evaluation.measure import Readings
from evaluation.statistics import PairedChange, flips, paired_change
from evaluation.task import Example, Task, answer_line, direct_prompt
from evaluation.tasks.belief import ORDERS, Asked

PARTS = ("right", "true_belief", "false_belief", "pair", "quadruple")


@dataclass(frozen=True)
class Belief:
    """The margin of every item, in nats. A story set is a draw of many: a change has the interval of the sets, not of the items.

    Parts: `right` (margin above 0, chance .5); the margin of `true_belief` and `false_belief` items, which are questions of first
    or second order whose answer is where the thing is, or is not; `pair`, that the same such question is right in both twins
    (chance .25, at the second); `quadruple`, that all four questions of a story are (chance .0625, at its last). NaN elsewhere,
    and where the items end before the story does.

    Not measurable where the backbone's margin on true beliefs is not clear of 0: what cannot follow a story that holds no false
    belief cannot show what it makes of one (Kim et al. 2025, arXiv 2502.11881, found accuracy near chance even in large models).
    Nor where its mean margin is not: who answers everything by where the thing is has nothing to lose.
    """

    name: str = "belief"
    version: int = 2
    unit: str = "nats"

    def read(self, engine: Engine, backbone: Backbone, profile: str | None, task: Task, examples: Sequence[Example]) -> Readings:
        if not all(map(_is_story, examples)):
            return _nothing(self, task, examples, f"belief is read of stories with four questions, which {task.name!r} is not")
        asked = [Asked.of(example) for example in examples]
        margins = belief_margins(engine, backbone, profile, examples)
        right = [float(margin > 0) for margin in margins]
        found = Readings.of(
            self,
            task,
            examples,
            margins,
            {
                "right": right,
                "true_belief": _where(margins, asked, lambda item: item.is_about_belief and item.answer_is_real),
                "false_belief": _where(margins, asked, lambda item: item.is_about_belief and not item.answer_is_real),
                "pair": _joint(right, asked, lambda item: (item.story_set, item.order) if item.is_about_belief else None, 2),
                "quadruple": _joint(right, asked, lambda item: (item.story_set, item.owner_saw), len(ORDERS)),
            },
        )
        # An adapter that lost its margin on true beliefs has lost something; only a backbone that never had one cannot show it.
        reason = _unreadable(found) if profile is None else ""
        return replace(found, values=(math.nan,) * len(margins), reason=reason) if reason else found

    def summary(self, base: Readings, adapted: Readings) -> Mapping[str, float | None]:
        """Joint accuracies of both sides, and the exact McNemar test of the quadruples; None where no story is whole."""
        found: dict[str, float | None] = {}
        for part in ("quadruple", "pair"):
            for side, readings in (("base", base), ("adapted", adapted)):
                mean = readings.part_mean(part)
                found[f"{side}_{part}"] = None if math.isnan(mean) else mean
        whole = [
            pair for pair in zip(base.parts["quadruple"], adapted.parts["quadruple"], strict=True) if not math.isnan(pair[0])
        ]
        found["quadruple_flips_p_value"] = flips(*zip(*whole, strict=True)).p_value if whole else None
        return found


def _nothing(measure: Belief, task: Task, examples: Sequence[Example], reason: str) -> Readings:
    unknown = (math.nan,) * len(examples)
    return Readings.of(measure, task, examples, unknown, {name: unknown for name in PARTS}, reason=reason)


def _is_story(example: Example) -> bool:
    return example.id.rpartition("/")[2] in ORDERS and len(example.choices or ()) == 2


def belief_margins(engine: Engine, backbone: Backbone, profile: str | None, examples: Sequence[Example]) -> list[float]:
    """Log-probability of the right container less that of the other, in nats, as the mean over both orders of naming them."""
    prefix = len(backbone.encode(answer_line("").rstrip()))
    asked: list[Continuation] = []
    for example in examples:
        wrong = next(choice for choice in example.choices or () if choice != example.answer)
        for listed in ((example.answer, wrong), (wrong, example.answer)):
            prompt = backbone.chat_ids(direct_prompt(replace(example, choices=listed)))
            asked.extend(Continuation(prompt, tuple(backbone.encode(answer_line(one)))) for one in (example.answer, wrong))
    sums = iter([sum(tokens[prefix:]) for tokens in engine.score(asked, profile)])
    return [sum(next(sums) - next(sums) for _ in range(2)) / 2 for _ in examples]


def _where(values: Iterable[float], asked: Iterable[Asked], holds: Callable[[Asked], bool]) -> list[float]:
    return [value if holds(item) else math.nan for value, item in zip(values, asked, strict=True)]


def _joint(right: Sequence[float], asked: Sequence[Asked], key: Callable[[Asked], object], size: int) -> list[float]:
    """At the last item of every whole group of that size: whether all of it is right. Items whose key is None have no group."""
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index, item in enumerate(asked):
        if (found := key(item)) is not None:
            groups[found].append(index)
    joint = [math.nan] * len(right)
    for members in groups.values():
        if len(members) == size:
            joint[members[-1]] = min(right[index] for index in members)
    return joint


def _unreadable(found: Readings) -> str:
    true = _by_set(found.parts["true_belief"], found.clusters)
    if not true:
        return "none of the items is about a true belief"
    margin = _clear(true)
    if margin.low <= 0:
        return f"the backbone's margin on true beliefs is {margin} nats, which is not clear of 0"
    apart = _clear(_by_set(found.values, found.clusters))
    if apart.low <= 0:
        return f"the backbone keeps the two containers apart by {apart} nats over whole stories, which is not clear of 0"
    return ""


def _by_set(values: Sequence[float], sets: Sequence[str]) -> list[float]:
    """Mean by story set, of the values that are known."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for value, group in zip(values, sets, strict=True):
        if not math.isnan(value):
            found[group].append(value)
    return [sum(known) / len(known) for known in found.values()]


def _clear(means: Sequence[float]) -> PairedChange:
    """Of 0: the mean over story sets, which are draws."""
    return paired_change([0.0] * len(means), means, [str(index) for index in range(len(means))], drawn_clusters=True)
