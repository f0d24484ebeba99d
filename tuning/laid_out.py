"""A recipe's fit on rows that are at hand, laid out as its `[fit]` says: in this process, or in several that are launched."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adapters.adapter import Adapter
from adapters.backbone import Backbone
from adapters.whole_file import write_whole
from engine.profile import Profile
from evaluation.task import Example, Task
from tuning.checkpoints import Checkpoint, Recorder
from tuning.ground import backbone_of, new_adapters
from tuning.launch import launched
from tuning.loop import OnStep
from tuning.methods import METHODS
from tuning.methods.method import Fit
from tuning.recipe import Recipe

FITTED = "fitted"  # what launched processes left, in the directory of the fit


@dataclass(frozen=True)
class Fitted:
    adapters: tuple[Adapter, ...]
    fit: Fit
    checkpoints: tuple[Checkpoint, ...] = ()  # after the steps that were asked for


def fitted_on(
    recipe: Recipe,
    backbone: Backbone,
    examples: Sequence[Example],
    on_step: OnStep | None = None,
    *,
    task: Task | None = None,
    directory: Path | None = None,
    checkpoints: Sequence[int] = (),
    threads: int | None = None,
) -> Fitted:
    """The recipe's adapters at their full scale, fitted on these examples and not on those that the recipe would draw.

    In `directory`, where given, the fit keeps what a killed one goes on from; where checkpoints are asked for, each is taken as
    its step (1, 2, ...) is done, so that such a fit begins anew. Launched processes have `threads` each, all of this process's
    shared between them where it is None. They load the recipe's backbone themselves, as this process does where `backbone`, on
    which a gate measures, is held in another format than the recipe fits around.
    """
    if not recipe.fit.is_launched:
        backbone = backbone if backbone.format == recipe.backbone_format else backbone_of(recipe)
        recorder, adapters = Recorder(checkpoints), new_adapters(recipe, backbone)
        on_update = recorder.on_update if checkpoints else None
        method = METHODS[recipe.method.name](recipe.method)
        fit = method.fit(backbone, adapters, examples, on_step, on_update, task=task, directory=directory)
        return Fitted(adapters, fit, tuple(recorder.checkpoints))
    threads = threads or max(1, torch.get_num_threads() // recipe.fit.processes)
    with tempfile.TemporaryDirectory(prefix="graftline-rows-") as name:
        taken = {step: Path(name) / f"checkpoint-{step}.safetensors" for step in checkpoints}
        place = Path(name) if directory is None or checkpoints else directory
        fitted = launched_once(recipe, place, threads, on_step, examples, taken)
        if directory is not None:
            forget_launched(directory)
        return Fitted(fitted.adapters, fitted.fit, tuple(Checkpoint.load(file) for file in taken.values()))


def launched_once(
    recipe: Recipe,
    directory: Path,
    threads: int,
    on_step: OnStep | None = None,
    examples: Sequence[Example] | None = None,
    checkpoints: dict[int, Path] | None = None,
) -> Fitted:
    """In processes of its own. What was fitted before a kill is not fitted again: it stays in the directory.

    `examples` are those that the recipe draws where they are None; `checkpoints` says where those of which steps go.
    """
    place, told = directory / FITTED, directory / f"{FITTED}.json"
    if not told.is_file():
        shutil.rmtree(place, ignore_errors=True)
        fit = launched(recipe, place, threads, on_step, examples, checkpoints)
        write_whole(told, json.dumps(asdict(fit)))
    return Fitted(Profile.load(place).adapters, Fit.of(json.loads(told.read_text())))


def at_hand(recipe: Recipe) -> Recipe:
    """A release's recipe as this machine can lay it out: without its config file of Accelerate, where that is on another one."""
    file = recipe.fit.accelerate
    return recipe if file is None or Path(file).is_file() else recipe.with_values({"fit.accelerate": None})


def forget_launched(directory: Path) -> None:
    """Removes what a launched fit left, where its adapters are kept elsewhere."""
    (directory / f"{FITTED}.json").unlink(missing_ok=True)
    shutil.rmtree(directory / FITTED, ignore_errors=True)
