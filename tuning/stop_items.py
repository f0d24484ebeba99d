"""A fitted adapter read item by item on the domain, so that a worse one than the best so far costs few items.

A trial that is ended so is complete, with the mean of what was read as its value, and is never published on it: see
tuning.stop_winner.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tuning.objective import ScaleScore, TrialScore

if TYPE_CHECKING:
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.base_cache import BaseCache
    from tuning.ground import Ground
    from tuning.recipe import Recipe
    from tuning.stop_curve import Point
    from tuning.stop_probe import Ask

SLICE = 24  # items that are read, and then reported, together
_READ = "by-item"


def shuffled(num_items: int) -> list[int]:
    """The order in which items are read: the same for all trials, so that any two have the first of them in common."""
    return random.Random("items").sample(range(num_items), num_items)


def read_by_items(
    recipe: Recipe,
    ground: Ground,
    profile: Profile,
    point: Point,
    engine: TorchEngine,
    cache: BaseCache,
    ask: Ask,
    alive: Callable[[], None],
) -> TrialScore | None:
    """What is known of the trial when it was ended, at the point's scale; None where all items were read and it goes on."""
    from evaluation.evaluate import Planned, evaluate
    from tuning.plan import likelihood_plan, margins_of

    plan = likelihood_plan(recipe, ground.domain, without=ground.not_measurable)
    (whole,) = [planned for planned in plan if planned.role == "domain"]
    order, changes, right = shuffled(len(whole.examples)), dict[int, float](), list[float]()
    engine.load(_READ, profile.scaled(point.scale))
    try:
        for start in range(0, len(order), SLICE):
            places = order[start : start + SLICE]
            part = Planned(whole.measure, whole.task, [whole.examples[place] for place in places], "domain")
            row = evaluate(engine, ground.backbone, _READ, [part], cache, lambda planned: alive()).domain
            right.extend(row.adapted.values)
            sides = zip(places, row.base.values, row.adapted.values, strict=True)
            told = {place: after - before for place, before, after in sides}
            changes |= told
            ended = ask("items", {"changes": told})
            if ended and len(changes) < len(order):
                return _score(point, list(changes.values()), right, margins_of(recipe, plan))
    finally:
        engine.unload(_READ)
    return None


def _score(point: Point, changes: list[float], right: list[float], margins: dict[str, float]) -> TrialScore:
    """Families as the last reading has them."""
    count = len(changes)
    mean = sum(changes) / count
    stderr = (sum((change - mean) ** 2 for change in changes) / (count - 1) / count) ** 0.5
    lost = {family: change.mean * margins[family] for family, change in point.families.items()}
    chosen = ScaleScore(point.scale, mean, sum(right) / count, lost, stderr)
    return TrialScore(chosen, (), {}, chosen.retention(margins), chosen.violations(margins), 0.0, num_items=count)


def is_partial(score: dict[str, Any]) -> bool:
    """Whether a trial's score is of some of its items only."""
    return score.get("num_items") is not None
