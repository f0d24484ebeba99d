"""What a sweep will take, before it begins: steps of the real fit and slices of the real measuring, timed and multiplied.

Timed are the recipe's own values and the costliest corner of what it searches. The first step of a fit, which is slower, counts
once and where the distance to the backbone is read. What a trial takes on the average is the mean over points drawn from the
search space: each has its own number of steps, at a time a step between the two that were timed, by where its sizes lie between
them.

The band: of one trial, from the cheapest to the costliest of the drawn points and the two that were timed; of the sweep, what
its number of draws leaves of that spread (two standard errors); both widened by how far the timed repeats differ. Trials that
stop rules end early make it less; that is not counted.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adapters.spec import Choices, Range
from tuning.recipe import METHOD_NAME, Recipe, narrowed
from tuning.space import Value, default_of, is_active

DRAWS, LEAST_SPREAD = 200, 0.05
RATE, STEPS = "method.learning_rate", "method.steps"
_RECORD_BYTES = 60_000  # of one trial in the study and beside it, without its weights


@dataclass(frozen=True)
class Timing:
    """One point of the search, timed. Times are in seconds; a pair gives two timings of the same thing."""

    steps: int
    most_steps: int | None  # that a token budget leaves
    before_s: float  # the load and what is written before the first step
    first_step_s: float
    step_s: tuple[float, ...]  # of the steps after the first
    read_every: int  # steps between two readings of the distance to the backbone
    measure_s: tuple[float, ...]  # of a whole trial: with the fewest scales written from, and with the most
    once_s: float  # reading the backbone itself, which the first trial alone does
    peak_memory_mib: float
    gpu_memory_mib: float
    adapter_bytes: int
    checkpoint_bytes: int

    def fit_s(self, steps: int, step_s: float | None = None) -> float:
        """Of that many steps; each reading of the distance costs what the first step cost beyond the others."""
        one = statistics.fmean(self.step_s) if step_s is None else step_s
        extra = max(0.0, self.first_step_s - statistics.fmean(self.step_s))
        return steps * one + math.ceil(steps / self.read_every) * extra

    @property
    def trial_s(self) -> float:
        return self.before_s + self.fit_s(self.steps) + statistics.fmean(self.measure_s)

    @property
    def spread(self) -> float:
        """How far repeats of the same thing lie from their mean, as a share of it: the larger of steps and measuring."""
        return max(LEAST_SPREAD, *(_spread(times) for times in (self.step_s, self.measure_s)))


@dataclass(frozen=True)
class Band:
    low: float
    point: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Times in seconds, memory in MiB, disk in bytes, cost in the currency of the price (None without a price)."""

    trials: int
    workers: int
    trial_s: Band
    sweep_s: Band  # on that many workers at once
    memory_mib: Band  # of one trial: what was measured; high: the costliest corner
    gpu_memory_mib: Band
    disk_bytes: Band
    cost: Band | None
    currency: str
    limited_by: str  # the budget that ends the sweep before its trials; empty where none does
    own: Timing
    corner: Timing

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def estimated(recipe: Recipe, own: Timing, corner: Timing, workers: int = 1) -> Estimate:
    """From the two timings; the same for the same numbers."""
    study, points = recipe.study, drawn(recipe)
    costs = [_trial_s(recipe, point, own, corner) for point in points]
    spread = max(own.spread, corner.spread)
    ends = [*costs, own.trial_s, corner.trial_s]
    mean = statistics.fmean(costs)
    trial = Band(min(ends) * (1 - spread), mean, max(ends) * (1 + spread))
    rest, chance = study.trials - 1, 2 * statistics.pstdev(costs) * math.sqrt(study.trials - 1)
    work = own.once_s + own.trial_s + rest * mean  # the first trial is the recipe as written
    low = max(0.0, work - chance) * (1 - spread)
    worker_s = Band(low, work, (work + chance) * (1 + spread))
    share = math.ceil(study.trials / workers) / study.trials
    sweep, limited = _scaled(worker_s, share), ""
    price = study.price_per_hour
    if price is not None and study.max_cost is not None and worker_s.point * price / 3600 > study.max_cost:
        sweep, limited = _capped(sweep, sweep.point * study.max_cost / (worker_s.point * price / 3600)), "cost"
    if study.time_budget_s is not None and sweep.point > study.time_budget_s:
        sweep, limited = _capped(sweep, study.time_budget_s), "time"
    return Estimate(
        study.trials,
        workers,
        trial,
        sweep,
        _peak(own.peak_memory_mib, corner.peak_memory_mib, spread),
        _peak(own.gpu_memory_mib, corner.gpu_memory_mib, spread),
        _disk(recipe, own, corner, workers),
        None if price is None else _scaled(sweep, price / 3600 * study.trials / math.ceil(study.trials / workers)),
        study.currency,
        limited,
        own,
        corner,
    )


def corner_of(recipe: Recipe) -> dict[str, Value]:
    """The searched values that cost most: every number at its upper end but the learning rate, every part of an adapter.

    Of other choices nobody knows which costs most: they keep the recipe's own value, and the method too.
    """
    values: dict[str, Value] = {}
    for field in sorted(recipe.search, key=lambda name: name != "adapter.kind"):
        chosen = recipe.with_values(dict(values))
        if field in (RATE, METHOD_NAME) or not is_active(field, chosen.adapter.kind, chosen.method.name):
            continue
        mark, own = narrowed(recipe, field, chosen.method.name), default_of(chosen, field)
        if isinstance(mark, Range):
            values[field] = type(own)(mark.high)
        elif field == "adapter.kind":
            values[field] = max(mark.options, key=lambda kind: str(kind).count("+"))
        elif all(isinstance(option, int | float) and not isinstance(option, bool) for option in mark.options):
            values[field] = max(mark.options)
    return values


def drawn(recipe: Recipe, count: int = DRAWS) -> list[dict[str, float]]:
    """Points of the numbers that cost, each as a share of the way from the recipe's own value to the corner; steps as they are.

    Uniform over each range, or over its logarithm, as the sampler's first trials are.
    """
    generator, sizes = random.Random(0), list[tuple[str, Range | Choices, float, float]]()
    for field, high in corner_of(recipe).items():
        if not isinstance(high, str | bool):
            mark = narrowed(recipe, field, recipe.method.name)
            sizes.append((field, mark, float(default_of(recipe, field)), float(high)))
    points = []
    for _ in range(count):
        values = {field: _draw(mark, generator) for field, mark, _, _ in sizes}
        points.append({f: values[f] if f == STEPS else _share(values[f], own, high) for f, _, own, high in sizes})
    return points


def _trial_s(recipe: Recipe, point: dict[str, float], own: Timing, corner: Timing) -> float:
    sizes = [share for field, share in point.items() if field != STEPS]
    where = statistics.fmean(sizes) if sizes else 0.0
    steps = round(point.get(STEPS, own.steps))
    if own.most_steps is not None:
        steps = min(steps, own.most_steps)

    def between(low: float, high: float) -> float:
        return low + where * (high - low)

    before = between(own.before_s, corner.before_s)
    measuring = between(statistics.fmean(own.measure_s), statistics.fmean(corner.measure_s))
    return before + between(own.fit_s(steps), corner.fit_s(steps)) + measuring


def _peak(own: float, corner: float, spread: float) -> Band:
    return Band(min(own, corner), max(own, corner), max(own, corner) * (1 + spread))


def _disk(recipe: Recipe, own: Timing, corner: Timing, workers: int) -> Band:
    kept = min(recipe.study.trials, max(recipe.study.keep_adapters, recipe.gate.candidates) + 1)  # and the recipe's own values
    records = _RECORD_BYTES * recipe.study.trials

    def taken(timing: Timing) -> float:
        return float(records + (kept + workers) * timing.adapter_bytes + workers * timing.checkpoint_bytes)

    return Band(taken(own), taken(own) + (taken(corner) - taken(own)) / 2, max(taken(own), taken(corner)))


def _draw(mark: Range | Choices, generator: random.Random) -> float:
    if isinstance(mark, Choices):
        return float(generator.choice(mark.options))
    if mark.log:
        return math.exp(generator.uniform(math.log(mark.low), math.log(mark.high)))
    return generator.uniform(mark.low, mark.high)


def _share(value: float, own: float, high: float) -> float:
    return min(1.0, max(0.0, (value - own) / (high - own))) if high != own else 0.0


def _spread(times: Sequence[float]) -> float:
    mean = statistics.fmean(times)
    return statistics.pstdev(times) / mean if mean else 0.0


def _scaled(band: Band, by: float) -> Band:
    return Band(band.low * by, band.point * by, band.high * by)


def _capped(band: Band, at: float) -> Band:
    return Band(min(band.low, at), min(band.point, at), min(band.high, at))
