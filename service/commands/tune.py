"""`graftline tune`: a sweep with a live table, or one line an event."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evaluation.tasks import task_named
from registry.home import home_directory
from registry.names import refuse_backbone_name
from registry.tracking import Tracking
from service.commands.crew import Crew, executor_of, run_by
from service.elsewhere import found_by
from service.preempted import START_AGAIN, ends_orderly
from service.sweep_view import LinesView, TableView
from tuning.asked import was_stopped
from tuning.budget import price_of
from tuning.candidates import Candidate
from tuning.continuing import pinned
from tuning.errors import Preempted
from tuning.recipe import Recipe
from tuning.storage import StudyStorage
from tuning.study import Sweep

PRICE = "GRAFTLINE_PRICE_PER_HOUR"


@dataclass(frozen=True)
class Overrides:
    """What the command line says in place of the recipe; None where it says nothing. A price is text: "2.50 EUR"."""

    trials: int | None = None
    time_budget_s: float | None = None
    mode: str | None = None
    max_cost: float | None = None
    price_per_hour: str | None = None

    @property
    def limits(self) -> tuple[str, ...]:
        """Those of the study that are given."""
        given = {"trials": self.trials, "time_budget_s": self.time_budget_s, "max_cost": self.max_cost}
        return tuple(name for name, value in given.items() if value is not None)

    def over(self, recipe: Recipe) -> Recipe:
        """The recipe with these values; a price that neither has is that of the environment."""
        text = self.price_per_hour
        if text is None and recipe.study.price_per_hour is None:
            text = os.environ.get(PRICE)
        price, currency = price_of(text) if text else (None, None)
        given = {
            "study.trials": self.trials,
            "study.time_budget_s": self.time_budget_s,
            "study.mode": self.mode,
            "study.max_cost": self.max_cost,
            "study.price_per_hour": price,
            "study.currency": currency,
        }
        return recipe.with_values({key: value for key, value in given.items() if value is not None})


def tune(
    recipe_file: Path,
    asked: Overrides,
    resume: bool,
    create_only: bool,
    crew: Crew | None,
    storage: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """0 when a trial finished, or a study was only made or handed to a scheduler; 1 when none did, 75 when it was told to end."""
    recipe = checked(asked.over(Recipe.load(recipe_file)))
    place = home_directory(home)
    tracking = Tracking.at(place, tracking_uri)
    sweep = Sweep(pinned(recipe, tracking), place, tracking, storage=StudyStorage.of(place, recipe.name, storage))
    if create_only:
        sweep.create_for_workers(resume, asked.limits)
        kept_in = sweep.kept_in.shown
        told = {"study": recipe.name, "storage": kept_in}
        print(
            json.dumps(told)
            if as_json
            else f"the study {recipe.name} is in {kept_in}; next: graftline worker --study {recipe.name}{found_by(sweep)}"
        )
        return 0
    if crew is not None:
        executor = executor_of(crew, sweep)
        study = sweep.create_for_workers(resume, asked.limits)
        code, handed_over = run_by(executor, crew, partial(was_stopped, study), quiet=as_json)
        if code or handed_over:
            return code
        chosen = sweep.candidates(study)
    else:
        try:
            with ends_orderly() as ended:
                chosen = run_sweep(sweep, resume, quiet=as_json, ended=ended, instead=asked.limits)
        except Preempted as error:
            print(error, file=sys.stderr)
            return START_AGAIN
    if as_json:
        print(json.dumps({"study": recipe.name, "storage": sweep.kept_in.shown, "candidates": [_row(c) for c in chosen]}))
    elif chosen:
        best = chosen[0]
        print(f"\nbest: trial {best.trial}, gain {best.domain_gain:+.3f}, retention {best.retention:+.2f} margins, ", end="")
        print("feasible" if best.feasible else "NOT feasible: some family lost more than its margin")
        print(f"adapter: {best.directory}\nnext: graftline publish {recipe.name}{found_by(sweep)}")
    else:
        print("\nno trial finished; the reasons are above and in trials.json")
    return 0 if chosen else 1


def checked(recipe: Recipe) -> Recipe:
    """Refuses an unknown task, bad data, an unknown backbone or its name before anything is written."""
    from adapters.backbone import sources_of

    refuse_backbone_name(recipe.name, recipe.backbone)
    for task in (recipe.domain, *recipe.protected):
        task_named(task)
    sources_of(recipe.backbone)
    return recipe


def run_sweep(
    sweep: Sweep,
    resume: bool,
    quiet: bool = False,
    ended: Callable[[], bool] = lambda: False,
    instead: Collection[str] = (),
) -> list[Candidate]:
    """Runs to the end and returns the candidates, best first. `instead`: see `Sweep.create`."""
    study = sweep.create(resume, instead)
    if sys.stdout.isatty() and not quiet:
        with TableView(sweep.recipe) as view:
            sweep.run(study, view.on_event, ended)
    else:
        sweep.run(study, LinesView(sweep.recipe, sys.stderr if quiet else sys.stdout).on_event, ended)
    return sweep.candidates(study)


def _row(candidate: Candidate) -> dict[str, object]:
    return {
        "trial": candidate.trial,
        "directory": str(candidate.directory),
        "params": candidate.params,
        "score": candidate.score,
        "run_id": candidate.run_id,
    }
