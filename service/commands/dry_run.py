"""`graftline tune --dry-run`: what the sweep would take, and nothing in the home."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from registry.home import home_directory
from registry.tracking import Tracking
from service.commands.tune import Overrides, checked
from service.estimate_view import estimate_view
from tuning.continuing import pinned
from tuning.estimate import corner_of, estimated
from tuning.isolation import available_threads, prepare
from tuning.recipe import Recipe
from tuning.timing import timed_apart


def dry_run(recipe_file: Path, asked: Overrides, workers: int, home: Path | None, tracking_uri: str | None, as_json: bool) -> int:
    place = home_directory(home)
    recipe = pinned(checked(asked.over(Recipe.load(recipe_file))), Tracking.at(place, tracking_uri))
    corner = corner_of(recipe)
    console = Console(stderr=as_json, markup=False, highlight=False)
    console.print("times the recipe's own values, then the costliest corner of its search; about one trial's time")
    prepare(recipe.domain)
    threads, cache = available_threads(), place / "cache"
    own = timed_apart(recipe, cache, threads)
    costliest = timed_apart(recipe.with_values(dict(corner)), cache, threads, with_base=False)
    found = estimated(recipe, own, costliest, workers)
    if as_json:
        print(json.dumps({"recipe": recipe.name, "costliest": corner, **found.as_dict()}))
    else:
        console.print(estimate_view(found, recipe.name, dict(corner)))
    return 0
