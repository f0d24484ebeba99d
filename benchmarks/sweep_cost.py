"""What a sweep costs until it has found as much: our sampler and stop rules, plain TPE and random search, on recorded trials.

    python -m benchmarks.sweep_cost [--full]

The surrogate draws, for the values that a sampler asks for, one of the recorded trials of benchmarks/sweep_trials.json (real
fits of the built-in reasoner, with readings), the nearer the likelier: whatever a sampler is told was once measured, noise and
all. Cost is the recorded time of loading, fitting, reading and measuring; a trial that a rule stops costs what it took until
then. Found is the area that the feasible trials dominate (tuning.hypervolume) by what is expected of their values, so that no
lucky draw counts. Default: five seeds; --full: forty.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import optuna
from matplotlib.figure import Figure
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from adapters.spec import Range
from adapters.whole_file import written_whole
from benchmarks.ratios import told_ratio
from benchmarks.results import RESULTS, commits, provenance, run_kind, table, write_section
from benchmarks.sweep_trials import RECIPE, recorded
from tuning.budget import SECONDS_KEY
from tuning.hypervolume import hypervolume
from tuning.recipe import Recipe, narrowed
from tuning.space import Value, defaults, suggest
from tuning.stop_judge import StopJudge
from tuning.stop_settings import StopRecipe

TRIALS, SEEDS, FULL_SEEDS = 48, 5, 40
AIM = 0.5  # of the cost of random search
LONGEST = 4  # times the cost of random search, after which an arm is ended
Row: TypeAlias = Mapping[str, Any]
Told: TypeAlias = Mapping[str, Any]  # a reading, as it is stored


@dataclass(frozen=True)
class Arm:
    """How a sweep searches. `ours`: the recipe's own values first, four random points, and constraints told."""

    name: str
    ours: bool
    stops: bool
    random: bool = False

    def sampler(self, seed: int) -> BaseSampler:
        if self.random:
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=4) if self.ours else TPESampler(seed=seed)


ARMS = (
    Arm("random search", ours=False, stops=False, random=True),
    Arm("plain TPE", ours=False, stops=False),
    Arm("our sampler, no rule", ours=True, stops=False),
    Arm("our sampler and stop rules", ours=True, stops=True),
)


@dataclass(frozen=True)
class Found:
    """After each trial: seconds spent, and the area that was found."""

    seconds: tuple[float, ...]
    area: tuple[float, ...]

    def cost_of(self, area: float) -> float:
        """Seconds until so much was found; infinite where it never was."""
        return next((spent for spent, found in zip(self.seconds, self.area, strict=True) if found >= area), math.inf)


class Surrogate:
    """Recorded trials by where they lie: distances are in shares of each field's range, and 1 between options."""

    def __init__(self, rows: Sequence[Row], recipe: Recipe) -> None:
        self.rows, self.recipe = rows, recipe
        self._places = [self._place(row["params"]) for row in rows]
        nearest = [min(_distance(a, b) for b in self._places if b is not a) for a in self._places]
        self._width = median(nearest)

    def __call__(self, params: Mapping[str, Value], drawn: random.Random) -> Row:
        return drawn.choices(self.rows, self._weights(params))[0]

    def expected(self, params: Mapping[str, Value]) -> tuple[float, float]:
        """Gain and retention there: the weighted mean of what was measured, which no lucky draw is part of."""
        weights = self._weights(params)
        scores = [(float(row["score"]["chosen"]["domain_gain"]), float(row["score"]["retention"])) for row in self.rows]
        gain, retention = (sum(w * one for w, one in zip(weights, column, strict=True)) for column in zip(*scores, strict=True))
        return gain / sum(weights), retention / sum(weights)

    def _weights(self, params: Mapping[str, Value]) -> list[float]:
        place = self._place(params)
        apart = [_distance(place, other) for other in self._places]
        least = min(apart)
        return [math.exp(-(distance**2 - least**2) / (2 * self._width**2)) for distance in apart]

    def _place(self, params: Mapping[str, Value]) -> dict[str, float | Value]:
        marks = {field: narrowed(self.recipe, field, self.recipe.method.name) for field in params}
        return {field: _share(mark, params[field]) if isinstance(mark, Range) else params[field] for field, mark in marks.items()}


def _share(mark: Range, value: Value) -> float:
    low, high, at = (math.log(float(one)) if mark.log else float(one) for one in (mark.low, mark.high, value))
    return (at - low) / (high - low)


def _distance(one: Mapping[str, float | Value], other: Mapping[str, float | Value]) -> float:
    return math.hypot(*(_apart(one.get(field), other.get(field)) for field in {*one, *other}))


def _apart(one: float | Value | None, other: float | Value | None) -> float:
    return one - other if isinstance(one, float) and isinstance(other, float) else float(one != other)


def swept(arm: Arm, surrogate: Surrogate, seed: int, budget_s: float) -> Found:
    """One study until its trials or its time are used up; random search has no limit of time but its trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=arm.sampler(seed))
    drawn, spent, points = random.Random(f"{arm.name}/{seed}"), 0.0, list[tuple[float, float]]()
    seconds, area = list[float](), list[float]()
    if arm.ours:
        study.enqueue_trial(defaults(surrogate.recipe))
    while spent < budget_s and len(seconds) < (TRIALS if math.isinf(budget_s) else 10 * TRIALS):
        trial = study.ask()
        params = suggest(trial, surrogate.recipe)
        row = surrogate(params, drawn)
        read, ends = _read(study, trial, row) if arm.stops else ([], False)
        took = cost(row, read, ends)
        spent += took
        trial.set_user_attr(SECONDS_KEY, took)
        if not ends:
            if arm.ours:
                for family, value in row["score"]["constraints"].items():
                    trial.set_constraint(family, value)
            found = (float(row["score"]["chosen"]["domain_gain"]), float(row["score"]["retention"]))
            trial.set_user_attr("score", {"feasible": row["score"]["feasible"]})
            study.tell(trial, found)
            if row["score"]["feasible"]:
                points.append(surrogate.expected(params))
        else:
            study.tell(trial, state=TrialState.PRUNED)
        seconds.append(spent)
        area.append(hypervolume(points))
    return Found(tuple(seconds), tuple(area))


def _read(study: optuna.Study, trial: optuna.Trial, row: Row) -> tuple[list[Told], bool]:
    """The readings that are taken, and whether the last ended the trial; the first is the recipe's own, which nothing stops."""
    read = list[Told]()
    judge = StopJudge(study, trial, StopRecipe(), spares=trial.number == 0, clock=lambda: _until(row, read))
    for told in row["curve"]:
        if judge("due", told) is None:
            read.append(told)
            if judge("probe", told) is not None:
                return read, True
    return read, False


def _until(row: Row, read: Sequence[Told]) -> float:
    """Seconds of a trial until its last reading is done."""
    seconds = row["seconds"]
    if not read:
        return 0.0
    return float(seconds["load"] + seconds["fit"] * read[-1]["checkpoint"] + sum(told["seconds"] for told in read))


def cost(row: Row, read: Sequence[Told], ends: bool) -> float:
    """Seconds of a recorded trial with these readings; `ends`: after the last of them."""
    if ends:
        return _until(row, read)
    seconds = row["seconds"]
    return float(seconds["load"] + seconds["fit"] + seconds["measure"] + sum(told["seconds"] for told in read))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_cost", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL_SEEDS} seeds")
    parser.add_argument("--seeds", type=int, help=f"[default: {SEEDS}]")
    given = parser.parse_args()
    seeds = range(given.seeds or (FULL_SEEDS if given.full else SEEDS))
    rows = recorded()
    surrogate = Surrogate(rows, Recipe.load(RECIPE))
    ends = {seed: swept(ARMS[0], surrogate, seed, math.inf) for seed in seeds}
    found = {ARMS[0].name: ends}
    for arm in ARMS[1:]:
        found[arm.name] = {seed: swept(arm, surrogate, seed, LONGEST * ends[seed].seconds[-1]) for seed in seeds}
        print(arm.name, flush=True)
    picture = RESULTS.parent / "sweep_cost.png"
    _picture(found, picture)
    feasible = sum(row["score"]["feasible"] for row in rows)
    lines = _lines(found)
    aim = "met" if float(lines[-1][2].split()[0]) <= AIM else "missed"
    headings = ["search", "area at the cost of random search", "to random search", "to plain TPE"]
    body = (
        f"{len(rows)} recorded trials, {feasible} of them feasible. Each ratio is the cost until the area is found that random "
        f"search (or plain TPE) has after {TRIALS} trials, over what that took; geometric means over {len(seeds)} seeds, 95 % "
        f"intervals. The aim of our sampler with stop rules, {AIM:g} to random search, is {aim}. An arm that has not found it "
        f"after {LONGEST} times the cost of random search is counted with that.\n\n"
        f"{table(headings, lines)}\n\n![area by cost]({picture.name})\n\n"
        f"{provenance('sweep_cost', f'0 to {len(seeds) - 1}')} · trials at commit {commits(rows)}"
    )
    write_section("sweep-cost", f"What a sweep costs until it has found as much ({run_kind(given.seeds, full=given.full)})", body)
    print(body)


def _lines(found: Mapping[str, Mapping[int, Found]]) -> list[list[str]]:
    lines = []
    for name, by_seed in found.items():
        told = [name, f"{median(_at(one, found[ARMS[0].name][seed].seconds[-1]) for seed, one in by_seed.items()):.4f}"]
        for other in (ARMS[0].name, ARMS[1].name):
            ratios, missed = list[float](), 0
            for seed, one in by_seed.items():
                reference = found[other][seed]
                # Plain TPE goes on for longer: it is compared after as many trials.
                last = min(TRIALS, len(reference.area)) - 1
                base, own = reference.cost_of(reference.area[last]), one.cost_of(reference.area[last])
                missed += math.isinf(own)
                ratios.append((LONGEST * found[ARMS[0].name][seed].seconds[-1] if math.isinf(own) else own) / base)
            told.append(f"{told_ratio(ratios)}{f' ({missed} never)' if missed else ''}")
        lines.append(told)
    return lines


def _at(found: Found, seconds: float) -> float:
    reached = [area for spent, area in zip(found.seconds, found.area, strict=True) if spent <= seconds]
    return reached[-1] if reached else 0.0


def _picture(found: Mapping[str, Mapping[int, Found]], file: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    for (name, by_seed), style in zip(found.items(), (":", "-.", "--", "-"), strict=True):
        last = max(one.seconds[-1] for one in found[ARMS[0].name].values())
        places = [last * step / 200 for step in range(1, 201)]
        axes.plot(
            places, [median(_at(one, place) for one in by_seed.values()) for place in places], style, color="black", label=name
        )
    axes.set_xlabel("cost, seconds of trials")
    axes.set_ylabel("area found (gain x margins kept), median")
    axes.legend(frameon=False)
    with written_whole(file) as part:
        figure.savefig(part, dpi=120, format="png")


if __name__ == "__main__":
    main()
