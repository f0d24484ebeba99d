"""Whether a sweep over methods ends better than one over plain SFT alone: two sweeps of equal budget, by hypervolume.

    python -m benchmarks.method_sweeps [--full] [--trials 12] [--methods NAME ...]

Both sweeps have as many trials, and each trial as many tokens, written and learnt together. One draws the method too, the other
is plain SFT's own: its loss, without any lever against forgetting. Default: one seed; --full: three. About two minutes a trial on
two cores. A sweep that was killed goes on; its trials are in runs/benchmarks/method_sweeps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.method_arms import SHARED, SHORT
from benchmarks.results import provenance, table, write_section
from registry.tracking import Tracking
from tuning.candidates import Candidate
from tuning.hypervolume import hypervolume
from tuning.methods import METHODS
from tuning.recipe import METHOD_NAME, Recipe
from tuning.study import Event, Sweep

PLAIN = ("method.learning_rate", "method.target", "method.prompt", "adapter.lora.rank", "adapter.lora.target_modules")
ANY_METHOD = (*PLAIN, "method.weight_decay", "method.loss", "method.kl_weight", "method.kl_on")  # where a method has them
# What learns from own right answers would fail: asked openly, the backbone writes none on this domain (benchmarks.method_arms).
WITHOUT_OWN_ANSWERS = ("sft", "rewrite", "critique", "criteria", "sdft", "rlag")
HEADINGS = ["seed", "sweep", "finished", "area", "chosen", "gain", "retention", "feasible"]


class Point(NamedTuple):
    gain: float
    retention: float

    def dominates(self, other: Point) -> bool:
        return self != other and self.gain >= other.gain and self.retention >= other.retention


class Ended(NamedTuple):
    """One sweep: the trials that finished, the one to publish first."""

    seed: int
    name: str
    found: list[Candidate]
    num_trials: int

    @property
    def points(self) -> list[Point]:
        return [Point(one.domain_gain, one.retention) for one in self.found]

    @property
    def chosen(self) -> str:
        return str(self.found[0].params.get(METHOD_NAME, "sft"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=WITHOUT_OWN_ANSWERS)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/method_sweeps"))
    args = parser.parse_args()
    recipe, seeds = Recipe.load(args.recipe), range(3 if args.full else 1)
    pairs = []
    for seed in seeds:
        wanted = recipes(recipe, seed, args.trials, args.methods)
        pairs.append((swept(wanted[0], seed, args.runs), swept(wanted[1], seed, args.runs)))
    body = [
        provenance("method_sweeps", f"0 to {len(seeds) - 1}"),
        f"{args.trials} trials a sweep, {SHORT:,} tokens a trial. Area: of gain and retention together that some trial reaches, "
        "from no gain and one margin lost in every family on; 0 where no trial gains or each loses more. Gain and retention are "
        "those of the search split: among so many trials the best is flattered, in both sweeps alike.",
        table(HEADINGS, [shown(one) for pair in pairs for one in pair]),
        "\n".join(f"- Seed {over.seed}: {verdict(over, plain)}" for over, plain in pairs),
    ]
    write_section("method_sweeps", "A sweep over methods against one over plain SFT", "\n\n".join(body))
    print("\n\n".join(body))


def recipes(recipe: Recipe, seed: int, trials: int, methods: Sequence[str]) -> tuple[Recipe, Recipe]:
    """Of the sweep over methods, and of plain SFT's own."""
    same = {**SHARED, "method.token_budget": SHORT, "method.seed": seed, "study.seed": seed, "study.trials": trials}
    same |= {"study.mode": "pareto", "study.time_budget_s": None, "study.min_trials": 0, "method.target": "rationale"}
    over = {"name": "methods", "search": (METHOD_NAME, *ANY_METHOD), "ranges": {METHOD_NAME: tuple(methods)}}
    start = tuple({METHOD_NAME: name} for name in methods if name != recipe.method.name)
    plain = {"name": "plain", "search": PLAIN}
    return recipe.with_values({**same, **over, "start": start}), recipe.with_values({**same, **plain})


def swept(recipe: Recipe, seed: int, runs: Path) -> Ended:
    home = runs / f"{recipe.name}-{seed}"
    sweep = Sweep(recipe, home, Tracking.at(home))
    study = sweep.create(resume=sweep.exists)
    sweep.run(study, say)
    return Ended(seed, recipe.name, sweep.candidates(study), recipe.study.trials)


def say(event: Event) -> None:
    if event.kind in ("start", "complete", "pruned", "failed", "note"):
        print(event.kind, event.trial, event.text, event.params or "", flush=True)


def shown(ended: Ended) -> list[str]:
    if not ended.found:
        return [str(ended.seed), ended.name, f"0 of {ended.num_trials}", "0", *[""] * 4]
    best = ended.found[0]
    return [
        str(ended.seed),
        ended.name,
        f"{len(ended.found)} of {ended.num_trials}",
        f"{hypervolume(ended.points):.4f}",
        ended.chosen,
        f"{best.domain_gain:+.3f}",
        f"{best.retention:+.2f}",
        "yes" if best.feasible else "no",
    ]


def verdict(over: Ended, plain: Ended) -> str:
    """Whether what the first would publish dominates all or some of what the second found, and by how much area."""
    if not over.found or not plain.found:
        return "a sweep without a finished trial has nothing to compare."
    best, front = over.points[0], frontier(plain.points)
    beaten = sum(best.dominates(point) for point in front)
    areas = hypervolume(over.points), hypervolume(plain.points)
    chosen = "dominates" if best.dominates(plain.points[0]) else "does not dominate"
    return (
        f"the chosen {over.chosen} {chosen} the chosen plain SFT, and dominates {beaten} of the {len(front)} points of its "
        f"frontier; the area is {areas[0]:.4f} against {areas[1]:.4f} ({areas[0] - areas[1]:+.4f})."
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other dominates, each once, by falling gain."""
    return sorted({point for point in points if not any(other.dominates(point) for other in points)}, reverse=True)


if __name__ == "__main__":
    main()
