"""Trials of random settings on the built-in reasoner, with the readings of their fits, kept as data for what replays them.

    python -m benchmarks.sweep_trials [--trials 48] [--threads 1]

Settings are drawn uniformly from the space of benchmarks/sweep_trials.toml; each trial is run to its end, whatever its readings
say, and added to benchmarks/sweep_trials.json: about two minutes each on one core. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from adapters.whole_file import write_whole
from benchmarks.results import commit
from tuning.isolation import prepare, run_isolated
from tuning.recipe import Recipe
from tuning.space import Value, suggest
from tuning.trial import Job

RECIPE, TRIALS = (Path(__file__).with_suffix(suffix) for suffix in (".toml", ".json"))
KEPT = ("chosen", "retention", "constraints", "feasible")  # of a score


def recorded() -> list[dict[str, Any]]:
    """A trial a row: params, curve (tuning.stop_curve), score, seconds by phase, and the commit it was run at."""
    rows: list[dict[str, Any]] = json.loads(TRIALS.read_text()) if TRIALS.is_file() else []
    return rows


def settings(recipe: Recipe, number: int) -> dict[str, Value]:
    sampler = optuna.samplers.RandomSampler(seed=number)
    return suggest(optuna.create_study(sampler=sampler).ask(), recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1, help="of a trial")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recipe, rows = Recipe.load(RECIPE), recorded()
    prepare(recipe.domain)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(len(rows), args.trials):
            values, curve = settings(recipe, number), list[Mapping[str, Any]]()

            def keep(kind: str, told: Mapping[str, Any], curve: list[Mapping[str, Any]] = curve) -> None:
                if kind == "probe":
                    curve.append(told)

            own = recipe.with_values(dict(values))
            job = Job(own, Path(directory) / str(number), Path(directory) / "cache", threads=args.threads)
            outcome = run_isolated(job, lambda phase, share: None, judge=keep)
            if outcome.state != "complete":
                raise SystemExit(f"Trial {number} ended with {outcome.state}: {outcome.reason}")
            score = {key: outcome.score[key] for key in KEPT}
            rows.append({"params": values, "curve": curve, "score": score, "seconds": outcome.seconds, "commit": commit()})
            write_whole(TRIALS, json.dumps(rows, indent=1) + "\n")
            print(number, values, score["chosen"]["domain_gain"], score["retention"], outcome.seconds, flush=True)


if __name__ == "__main__":
    main()
