"""`graftline fit`: one fit of a recipe's own values, alone or as one of several processes."""

from __future__ import annotations

import json
from pathlib import Path

from registry.home import home_directory
from registry.tracking import Tracking
from service.elsewhere import elsewhere
from tuning.continuing import pinned
from tuning.processes import Processes
from tuning.recipe import Recipe


def fit(
    recipe_file: Path,
    directory: Path,
    processes: int | None,
    accelerate: Path | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Under a launcher this is one of its processes, and the first of them speaks."""
    from tuning.fitting import check_free, fit_recipe
    from tuning.isolation import available_threads, use_threads
    from tuning.launch import launched

    given = {"fit.processes": processes, "fit.accelerate": None if accelerate is None else str(accelerate.resolve())}
    recipe = Recipe.load(recipe_file).with_values({key: value for key, value in given.items() if value is not None})
    recipe = pinned(recipe, Tracking.at(home_directory(home), tracking_uri))
    here = Processes.here()

    def on_step(step: int, steps: int, loss: float) -> None:
        if not as_json:
            print(f"step {step} of {steps}, loss {loss:.4f}", flush=True)

    check_free(directory)
    if recipe.fit.is_launched and here.count == 1:
        threads = max(1, available_threads() // recipe.fit.processes)
        done = launched(recipe, directory, threads, on_step)
    else:
        use_threads()
        done = fit_recipe(recipe, directory, on_step)
    if not here.is_main:
        return
    if as_json:
        print(json.dumps({"directory": str(directory), "fit": done.as_dict()}))
    else:
        print(f"\n{done.num_tokens} tokens in {done.seconds:.1f} s\nadapter: {directory}")
        where = elsewhere(home_directory(home), tracking_uri)
        print(f"next: graftline evaluate {directory}{where}, graftline publish {directory}{where}")
