"""`graftline tune`: a sweep with a live table, or one line an event."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evaluation.tasks import task_named
from registry.home import home_directory
from registry.tracking import Tracking
from service.sweep_view import LinesView, TableView
from tuning.budget import price_of
from tuning.candidates import Candidate
from tuning.continuing import pinned
from tuning.recipe import Recipe
from tuning.study import Sweep


def tune(
    recipe_file: Path,
    resume: bool,
    trials: int | None,
    time_budget_s: float | None,
    mode: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
    max_cost: float | None = None,
    price_per_hour: str | None = None,
) -> int:
    """0 when a trial finished, 1 when none did."""
    recipe = checked(with_options(Recipe.load(recipe_file), trials, time_budget_s, mode, max_cost, price_per_hour))
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri)
    sweep = Sweep(pinned(recipe, tracking), place, tracking)
    chosen = run_sweep(sweep, resume, quiet=as_json)
    if as_json:
        print(json.dumps({"study": recipe.name, "storage": sweep.storage_url, "candidates": [_row(c) for c in chosen]}))
    elif chosen:
        best = chosen[0]
        print(f"\nbest: trial {best.trial}, gain {best.domain_gain:+.3f}, retention {best.retention:+.2f} margins, ", end="")
        print("feasible" if best.feasible else "NOT feasible: some family lost more than its margin")
        print(f"adapter: {best.directory}\nnext: graftline publish {recipe.name}")
    else:
        print("\nno trial finished; the reasons are above and in trials.json")
    return 0 if chosen else 1


def checked(recipe: Recipe) -> Recipe:
    """Refuses an unknown task, bad data or an unknown backbone before anything is written."""
    from adapters.backbone import sources_of

    for task in (recipe.domain, *recipe.protected):
        task_named(task)
    sources_of(recipe.backbone)
    return recipe


def with_options(
    recipe: Recipe,
    trials: int | None,
    time_budget_s: float | None,
    mode: str | None,
    max_cost: float | None = None,
    price_per_hour: str | None = None,
) -> Recipe:
    """The recipe with what the command line overrides. A price is text: "2.50 EUR"."""
    price, currency = (None, None) if price_per_hour is None else price_of(price_per_hour)
    given = {
        "study.trials": trials,
        "study.time_budget_s": time_budget_s,
        "study.mode": mode,
        "study.max_cost": max_cost,
        "study.price_per_hour": price,
        "study.currency": currency,
    }
    return recipe.with_values({key: value for key, value in given.items() if value is not None})


def run_sweep(sweep: Sweep, resume: bool, quiet: bool = False) -> list[Candidate]:
    """Runs to the end and returns the candidates, best first."""
    study = sweep.create(resume)
    if sys.stdout.isatty() and not quiet:
        with TableView(sweep.recipe) as view:
            sweep.run(study, view.on_event)
    else:
        sweep.run(study, LinesView(sweep.recipe, sys.stderr if quiet else sys.stdout).on_event)
    return sweep.candidates(study)


def _row(candidate: Candidate) -> dict[str, object]:
    return {
        "trial": candidate.trial,
        "directory": str(candidate.directory),
        "params": candidate.params,
        "score": candidate.score,
        "run_id": candidate.run_id,
    }
