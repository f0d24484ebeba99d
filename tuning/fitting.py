"""One fit of a recipe's own values, without a search: in this process, or as one of several that were launched together."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.whole_file import whole_directory
from engine.profile import Profile
from evaluation.task import Example
from evaluation.tasks import task_named
from tuning.continuing import check_start
from tuning.errors import BadRecipe, Diverged
from tuning.ground import backbone_of, new_adapters
from tuning.loop import OnStep, OnUpdate
from tuning.manifest import complete
from tuning.methods import METHODS
from tuning.methods.method import Fit
from tuning.plan import training_examples
from tuning.processes import Processes
from tuning.recipe import Recipe
from tuning.servable import check_servable
from tuning.sharding import is_asked, sharded
from tuning.usable import check_lengths, check_usable

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit_recipe(
    recipe: Recipe,
    directory: Path,
    on_step: OnStep | None = None,
    on_update: OnUpdate | None = None,
    prepared: Sequence[Example] | None = None,
) -> Fit:
    """Fits the recipe's values and writes the adapters to `directory`, ready for `graftline publish`.

    On the rows that the recipe draws, or on those that a study has prepared in their place and checked itself. Of several
    processes each takes its share of every batch, and the first writes. A fit that was killed goes on at its checkpoint, which is
    kept beside the directory until then; of one that diverged nothing is kept. BadRecipe for a directory that holds something.
    """
    check_free(directory)
    here = Processes.here()
    METHODS[recipe.method.name].check_processes(here.count)
    in_parts, accelerator = is_asked(), _accelerator()
    backbone = sharded(recipe, accelerator.device) if in_parts else backbone_of(recipe, str(accelerator.device))
    domain = task_named(recipe.domain)
    examples = training_examples(recipe, domain) if prepared is None else prepared
    if prepared is None:
        check_usable(recipe, domain, examples)
        check_lengths(recipe, backbone, examples)
    check_start(recipe, backbone)
    check_servable(recipe, backbone)
    adapters, kept = new_adapters(recipe, backbone), kept_beside(directory)
    kept.mkdir(parents=True, exist_ok=True)
    method = METHODS[recipe.method.name](recipe.method)
    on_step = on_step if here.is_main else None
    try:
        fit = method.fit(backbone, adapters, examples, on_step, on_update, task=domain, directory=kept)
    except Diverged:
        if here.is_main:  # to go on from its checkpoint is to diverge again
            shutil.rmtree(kept)
        raise
    if here.is_main:
        if directory.is_dir():
            directory.rmdir()  # it is empty: see above
        with whole_directory(directory) as part:
            complete(part, recipe, backbone, Profile(adapters), 1.0, examples)
        shutil.rmtree(kept)
    accelerator.wait_for_everyone()
    return fit


def check_free(directory: Path) -> None:
    """Raises BadRecipe for a directory with something in it."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadRecipe(f"A fit is written to a new directory, but {directory} is there. Remove it, or name another.")


def kept_beside(directory: Path) -> Path:
    """Where the checkpoint of the fit that is to be written to the directory lies."""
    return directory.with_name(f".{directory.name}.fit")


def _accelerator() -> Accelerator:
    import torch
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())
