"""`graftline sequence`: several domains one after another, under four policies, with the matrix after every stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from registry.home import home_directory
from registry.tracking import Tracking
from service.pace import Pace

if TYPE_CHECKING:
    from tuning.recipe import Recipe
    from tuning.sequence import Sequenced, SequenceSpec
    from tuning.sequence_matrix import Interval, PolicyMatrix
    from tuning.sequence_recipes import Order

AGAINST = "continued"  # the policy that the others are set beside, where it is there
COMPARED = ("average_accuracy", "forgetting", "reasoning")


def sequence(
    recipe_files: Sequence[Path],
    settings: Mapping[str, Any],
    sweep: bool,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Nothing is written before all recipes are found to be a sequence."""
    from dataclasses import replace

    from adapters.backbone import Backbone
    from tuning.allocator import keep_freed_memory
    from tuning.continuing import pinned
    from tuning.isolation import use_threads
    from tuning.recipe import Recipe
    from tuning.sequence import fits_in, study_of
    from tuning.sequence_picture import heat_map
    from tuning.sequence_recipes import check_recipes

    spec = _checked(settings)
    recipes = [Recipe.load(file) for file in recipe_files]
    check_recipes(recipes, spec.policies, sweep, spec.merge.weights)
    place = home_directory(home)
    tracking, pace = Tracking.at(place, tracking_uri), Pace()
    recipes = [pinned(recipe, tracking) for recipe in recipes]
    use_threads()
    keep_freed_memory()
    fits = fits_in(place, Backbone.load(recipes[0].backbone, format=recipes[0].backbone_format), pace)
    if sweep:
        fits = replace(fits, sweep=_swept(place, tracking, as_json))
    study = study_of(recipes, spec, place, fits)
    found = study.run(pace)
    pictures = {}
    for (order, policy), matrix in found.matrices.items():
        title = f"{policy}: {', '.join(order)}"
        name = f"{policy}-{study.orders.index(order) + 1}.png"
        pictures[order, policy] = str(heat_map(matrix, title, study.directory / name))
    if as_json:
        told = study.as_dict(found)
        for one in told["matrices"]:
            one["picture"] = pictures[tuple(one["order"]), one["policy"]]
        print(json.dumps(told | {"differences": [told for order in found.orders for told in differences(found, order)]}))
        return
    console = Console(markup=False)
    console.width = max(console.width, 28 + 17 * (len(study.plan) + 1))  # a cell has an interval
    for order in found.orders:
        for policy, matrix in found.of(order).items():
            console.print(_scores(matrix, f"{policy}: {', '.join(order)}"))
        console.print(_numbers(found, order))
        console.print(_differences(found, order))
    for name, reason in study.not_measurable.items():
        console.print(f"{name}: not measurable on this backbone: {reason}")
    console.print(f"heat maps and sequence.json in {study.directory}", soft_wrap=True)


def differences(found: Sequenced, order: Order) -> list[dict[str, Any]]:
    """Every policy less the continued adapter (less the first policy, where none is continued), on the same items."""
    by_policy = found.of(order)
    against = next((policy for policy in by_policy if policy == AGAINST), next(iter(by_policy)))
    return [
        {
            "order": list(order),
            "one": policy,
            "other": against,
            **{name: matrix.numbers.minus(by_policy[against].numbers, name)._asdict() for name in COMPARED},
        }
        for policy, matrix in by_policy.items()
        if policy != against
    ]


def _checked(settings: Mapping[str, Any]) -> SequenceSpec:
    from pydantic import ValidationError

    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence
    from tuning.sequence import SequenceSpec

    try:
        return SequenceSpec(**settings)
    except ValidationError as error:
        raise BadRecipe(in_one_sentence(error, of="sequence")) from error


def _swept(place: Path, tracking: Tracking, quiet: bool) -> Callable[[Recipe], Path]:
    from service.commands.tune import run_sweep
    from tuning.errors import SweepStopped
    from tuning.study import Sweep

    def best(recipe: Recipe) -> Path:
        sweep = Sweep(recipe, place, tracking)
        chosen = run_sweep(sweep, resume=sweep.exists, quiet=quiet)
        if not chosen:
            raise SweepStopped(
                f"A sequence goes on from a stage's best adapter, but no trial of {recipe.name!r} finished. The reasons are in "
                f"{sweep.directory}/trials.json: change the recipe."
            )
        return chosen[0].directory

    return best


def _scores(matrix: PolicyMatrix, title: str) -> Table:
    columns = [*matrix.matrix.domains, *matrix.matrix.retention]
    made = Table(title=f"{title}: score after each stage, [change from the backbone]", title_justify="left")
    for heading in ("stage", "reasoning", *(column.task for column in columns)):
        made.add_column(heading, overflow="fold")
    stages = ("backbone", *(f"{number}: {one.task}" for number, one in enumerate(matrix.matrix.domains, start=1)))
    for number, (stage, reasoning) in enumerate(zip(stages, matrix.reasoning, strict=True)):
        cells = [
            f"{columns[place].backbone:.3f}" if number == 0 else _cell(columns[place], number) for place in range(len(columns))
        ]
        made.add_row(stage, "-" if reasoning is None else f"{reasoning:.3f}", *cells)
    return made


def _cell(column: Any, stage: int) -> str:
    cell = column.cells[stage - 1]
    low, high = (f"{end:+.2f}" if end is not None else "-" for end in (cell.low, cell.high))
    return f"{cell.score:.3f}\n[{low}, {high}]"


def _numbers(found: Sequenced, order: Order) -> Table:
    from tuning.sequence_matrix import NAMES

    by_policy = found.of(order)
    made = Table(title=f"{', '.join(order)}: in numbers, with 95 % intervals over items", title_justify="left")
    for heading in ("", *by_policy, "what it is"):
        made.add_column(heading, overflow="fold")
    for name, told in NAMES.items():
        made.add_row(name.replace("_", " "), *(shown(one.numbers.interval(name), name) for one in by_policy.values()), told)
    routing = [one.routing[-1] for one in by_policy.values() if one.routing]
    for last in routing:
        told = f"{last['right']:.3f} of prompts sent right, {last['astray']:.3f} of the backbone's astray"
        made.caption = f"router after the last stage: {told}, {last['mistaken']:.3f} of the adapters' to another adapter"
    return made


def _differences(found: Sequenced, order: Order) -> Table:
    rows = differences(found, order)
    made = Table(title="one policy less another, on the same items", title_justify="left")
    for heading in ("", *(name.replace("_", " ") for name in COMPARED)):
        made.add_column(heading, overflow="fold")
    for row in rows:
        cells = (row[name] for name in COMPARED)
        made.add_row(
            f"{row['one']} - {row['other']}", *(shown_change(cell["value"], cell["low"], cell["high"]) for cell in cells)
        )
    return made


def shown(found: Interval, name: str) -> str:
    """A score as it is, what is a change with its sign."""
    if found.value is None:
        return "-"
    if "accuracy" in name:
        return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return shown_change(*found)


def shown_change(value: float | None, low: float | None, high: float | None) -> str:
    return "-" if value is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
