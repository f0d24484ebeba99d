"""`graftline softcot-arms`: what an assistant's soft thoughts are worth beyond a learned prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from registry.home import home_directory
from registry.tracking import Tracking
from service.commands.attribute import contrast_cells, contrasts
from service.pace import Budget, Pace

if TYPE_CHECKING:
    from tuning.softcot_arms import SoftCoTArms


def softcot_arms(recipe_file: Path, seeds: int, time_budget_s: float | None, home: Path | None, as_json: bool) -> int:
    """0 when every arm is read, 1 when time ran out and the same command goes on from here."""
    from tuning.continuing import pinned
    from tuning.ground import Ground
    from tuning.isolation import use_threads
    from tuning.recipe import Recipe
    from tuning.softcot_arms import study_of

    budget, place = Budget(time_budget_s), home_directory(home)
    recipe = pinned(Recipe.load(recipe_file), Tracking.at(place))
    use_threads()
    study = study_of(recipe, Ground.of(recipe, place / "cache"), place, seeds)
    found = study.run(Pace(), budget.is_spent)
    if as_json:
        told = {"recipe": recipe.name, "backbone": recipe.backbone, "finished": found is not None}
        left_out = {"not_measurable": study.ground.not_measurable, "directory": str(study.directory)}
        print(json.dumps(told | left_out | (found.as_dict() if found else {})))
    elif found is None:
        print(f"time ran out; the same command goes on from {study.directory}")
    else:
        _show(found)
        for name, reason in study.ground.not_measurable.items():
            print(f"{name}: not measurable on this backbone: {reason}")
        print("\n".join(found.sentences()))
    return 0 if found else 1


def _show(found: SoftCoTArms) -> None:
    from tuning.softcot_arms import ARMS, EFFECTS

    console = Console(markup=False)
    table = Table(title=f"arms of soft thoughts, {found.num_seeds} seeds, by {found.measure}", title_justify="left")
    for heading in ("arm", "", "domain accuracy"):
        table.add_column(heading)
    for arm, words in {"backbone": "as it is", **ARMS}.items():
        table.add_row(arm, words, f"{found.accuracies[arm]:.3f}")
    console.print(table)
    effects = Table(title="effects in the domain", title_justify="left")
    for heading in ("effect", "arms", "measure", "change", "95 % interval", "by seed", "n"):
        effects.add_column(heading)
    for measure, each in found.domain.items():
        for effect, (one, other) in EFFECTS.items():
            effects.add_row(effect, f"{one} - {other}", measure.partition("/")[0], *contrast_cells(each[effect]))
    console.print(effects)
    console.print(contrasts({arm: dict(kept) for arm, kept in found.retention.items()}, "retention, against the backbone"))
