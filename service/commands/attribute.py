"""`graftline attribute`: which training rows cost reasoning, and the removal experiment that tests the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from registry.home import home_directory
from registry.tracking import Tracking
from service.pace import Budget, Pace

if TYPE_CHECKING:
    from tuning.arms import Contrast
    from tuning.attribution import Attributed

_SHOWN = 10


def attribute(
    recipe_file: Path, values: dict[str, Any], check: bool, time_budget_s: float | None, home: Path | None, as_json: bool
) -> int:
    """0 when all is done, 1 when time ran out and the same command goes on from here."""
    from pydantic import ValidationError

    from tuning.attribution import Attribution, AttributionSpec
    from tuning.continuing import pinned
    from tuning.errors import BadRecipe
    from tuning.faults import in_one_sentence
    from tuning.ground import Ground
    from tuning.isolation import use_threads
    from tuning.recipe import Recipe

    budget, place = Budget(time_budget_s), home_directory(home)
    recipe = pinned(Recipe.load(recipe_file), Tracking.at(place))
    try:
        spec = AttributionSpec(**values)
    except ValidationError as error:
        raise BadRecipe(in_one_sentence(error)) from error
    use_threads()
    attribution = Attribution(recipe, spec, Ground.of(recipe, place / "cache"), place)
    found = attribution.run(check, Pace(), budget.is_spent)
    is_done = found is not None and (found.removal is not None or not check)
    if as_json:
        told = {"recipe": recipe.name, "backbone": recipe.backbone, "finished": is_done, "directory": str(attribution.directory)}
        print(json.dumps(told | (found.as_dict() if found else {})))
    else:
        if found is not None:
            _show(found)
        if not is_done:
            print(f"time ran out; the same command goes on from {attribution.directory}")
    return 0 if is_done else 1


def _show(found: Attributed) -> None:
    told, console = found.as_dict(), Console(markup=False)
    families = Table(title=f"{len(found.influences)} rows by family ({found.evidence})", title_justify="left")
    for heading in ("family", "rows below 0", "conflicts with the domain", "rank correlation with length"):
        families.add_column(heading, overflow="fold")
    for name, below in told["below_zero"].items():
        correlation = told["length_correlation"][name]
        families.add_row(
            name, str(below), str(len(told["conflicts"][name])), "-" if correlation is None else f"{correlation:+.2f}"
        )
    console.print(families)
    rows = Table(title="the rows that cost most (s < 0: training on the row raises the loss of reasoning)", title_justify="left")
    for heading in ("row", "tokens", "retention", "domain", "worst family", ""):
        rows.add_column(heading, overflow="fold")
    for one in found.worst[:_SHOWN]:
        worst = min(one.families, key=lambda name: one.families[name])
        cells = (f"{one.retention:+.3f}", f"{one.domain:+.3f}", f"{worst} {one.families[worst]:+.3f}", one.advice)
        rows.add_row(one.row, str(one.tokens), *cells)
    console.print(rows)
    if found.removal:
        console.print(contrasts(found.removal.against_random, "left out, against as many random rows"))
        console.print(contrasts(found.removal.against_backbone, "left out, against the backbone"))
    for name, reason in found.not_measurable.items():
        print(f"{name}: not measurable on this backbone: {reason}")
    print("\n".join(found.sentences()))
    print(f"every row: {found.directory / 'attribution.json'}")


def contrasts(found: dict[str, dict[str, Contrast]], title: str) -> Table:
    """One row an arm and measure."""
    made = Table(title=title, title_justify="left")
    for heading in ("arm", "measure/task", "change", "95 % interval", "by seed", "n"):
        made.add_column(heading, overflow="fold")
    for arm, by_key in found.items():
        for key, one in by_key.items():
            made.add_row(arm, key, *contrast_cells(one))
    return made


def contrast_cells(one: Contrast) -> tuple[str, str, str, str]:
    """Change, interval, change by seed, number of items."""
    if not one.change.n:
        return "-", "not measurable", "-", "0"
    by_seed = " ".join(f"{mean:+.3f}" for mean in one.by_seed)
    return f"{one.change.mean:+.4f}", f"[{one.change.low:+.4f}, {one.change.high:+.4f}]", by_seed, str(one.change.n)
