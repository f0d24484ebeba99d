"""Which protected families can show a loss on the backbone: what it cannot do constrains no trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapters.backbone import Backbone
from evaluation.admission import admissions, stored_admission
from evaluation.tasks import task_named
from tuning.errors import SweepRefused
from tuning.recipe import Recipe


def not_measurable(
    recipe: Recipe, backbone: Backbone, directory: Path, on_progress: Callable[[float], None] | None = None
) -> dict[str, str]:
    """The families that admission turns away, with the reason. What is not in the directory yet is read first, and kept there."""
    from engine.torch_engine import TorchEngine

    precision = recipe.evaluation.precision
    engine, tasks = None, [task_named(name) for name in recipe.protected]
    found: dict[str, str] = {}
    for index, task in enumerate(tasks):
        admission = stored_admission(backbone, task, directory, precision=precision)
        if admission is None:
            if on_progress:
                on_progress(index / len(tasks))
            engine = engine or TorchEngine(backbone, max_rows=64, precision=precision)
            admission = admissions(engine, backbone, [task], directory, precision=precision)[task.name]
        if not admission.admitted:
            found[task.name] = "; ".join(admission.reasons)
    if len(found) == len(tasks):
        listed = ". ".join(f"{name}: {reason}" for name, reason in found.items())
        raise SweepRefused(
            f"A sweep keeps what the backbone can do, but {recipe.backbone} can do none of the protected families. {listed}. "
            "Protect a task that it can do, or take a backbone that reasons."
        )
    return found
