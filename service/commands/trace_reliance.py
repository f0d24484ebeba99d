"""`graftline trace-reliance`: the four-arm control of what a domain's traces are worth."""

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
    from tuning.trace_reliance import TraceReliance


def trace_reliance(
    recipe_file: Path, seeds: int, trace_loss: bool, time_budget_s: float | None, home: Path | None, as_json: bool
) -> int:
    """0 when every arm is read, 1 when time ran out and the same command goes on from here."""
    from tuning.continuing import pinned
    from tuning.ground import Ground
    from tuning.isolation import use_threads
    from tuning.recipe import Recipe
    from tuning.trace_reliance import study_of

    budget, place = Budget(time_budget_s), home_directory(home)
    recipe = pinned(Recipe.load(recipe_file), Tracking.at(place))
    use_threads()
    study = study_of(recipe, Ground.of(recipe, place / "cache"), place, seeds, trace_loss)
    found = study.run(Pace(), budget.is_spent)
    if as_json:
        told = {"recipe": recipe.name, "backbone": recipe.backbone, "trace_loss": trace_loss, "finished": found is not None}
        left_out = {"not_measurable": study.ground.not_measurable, "directory": str(study.directory)}
        print(json.dumps(told | left_out | (found.as_dict() if found else {})))
    elif found is None:
        print(f"time ran out; the same command goes on from {study.directory}")
    else:
        _show(found, trace_loss)
        for name, reason in study.ground.not_measurable.items():
            print(f"{name}: not measurable on this backbone: {reason}")
        print("\n".join(found.sentences()))
    return 0 if found else 1


def _show(found: TraceReliance, trace_loss: bool) -> None:
    from tuning.trace_reliance import ARMS, EFFECTS

    console, loss = Console(markup=False), "with" if trace_loss else "without"
    arms = Table(title=f"four arms, {found.num_seeds} seeds, {loss} loss on the trace", title_justify="left")
    for heading in ("arm", "", "domain accuracy", "trace validity", "trace tokens", "fit tokens", "retention (margins)"):
        arms.add_column(heading, overflow="fold")
    for arm, words in ARMS.items():
        validity = found.trace_validity[arm]
        arms.add_row(
            arm,
            words,
            f"{found.accuracies[arm]:.3f}",
            "-" if validity is None else f"{validity:.3f}",
            f"{found.trace_tokens[arm]:.0f}",
            f"{found.fit_tokens[arm]:.0f}",
            f"{found.capped[arm]:+.2f}",
        )
    console.print(arms)
    effects = Table(title="effects on domain accuracy", title_justify="left")
    for heading in ("effect", "arms", "change", "95 % interval", "by seed", "n"):
        effects.add_column(heading, overflow="fold")
    for effect, (one, other) in EFFECTS.items():
        effects.add_row(effect, f"{one} - {other}", *contrast_cells(found.effects[effect]))
    console.print(effects)
    console.print(contrasts({arm: dict(kept) for arm, kept in found.retention.items()}, "retention, against the backbone"))
