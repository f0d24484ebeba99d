"""Siblings: the same recipe fitted under other seeds, so that a gate judges the recipe and not one lucky fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapters.backbone import Backbone
from adapters.whole_file import whole_directory
from engine.profile import Profile
from evaluation.tasks import task_named
from registry.manifest import MANIFEST, file_digest, verify
from tuning.errors import BadRecipe
from tuning.gating import Subject
from tuning.laid_out import at_hand, fitted_on
from tuning.manifest import complete
from tuning.plan import training_examples
from tuning.recipe import Recipe


def sibling(subject: Subject, backbone: Backbone, number: int, home: Path, on_step: Callable[[float], None]) -> Subject:
    """The release's recipe at its own scale, with every seed raised by `number` (1, 2, ...): fitted once, then kept in `home`.

    Other seeds draw other training rows and start from other weights. `on_step` is told the share of the fit that is done.
    """
    directory = home / "siblings" / file_digest(subject.directory / MANIFEST)[:16] / str(number)
    name = f"{subject.name}, training seed +{number}"
    if (directory / MANIFEST).is_file():
        return Subject(name, directory, verify(directory))
    if subject.manifest.derived:
        raise BadRecipe(
            f"A sibling is fitted by a release's recipe, but {subject.name} was made without a fit "
            f"({subject.manifest.derived.get('how')}). Set gate.training_seeds = 1 for it, with a reason."
        )
    recipe = reseeded(subject.recipe, number)
    task = task_named(recipe.domain)
    examples = training_examples(recipe, task)

    def told(step: int, steps: int, loss: float) -> None:
        on_step(step / steps)

    adapters = fitted_on(at_hand(recipe), backbone, examples, told, task=task).adapters
    scale = subject.manifest.profile.scale
    policy = Profile.load(subject.directory).policy  # a release is judged as it is served
    with whole_directory(directory) as part:
        complete(part, recipe, backbone, Profile(adapters, policy).scaled(scale), scale, examples)
    return Subject(name, directory, verify(directory))


def reseeded(recipe: Recipe, number: int) -> Recipe:
    seeds = {
        "method.seed": recipe.method.seed,
        "adapter.lora.seed": recipe.adapter.lora.seed,
        "adapter.softcot.seed": recipe.adapter.softcot.seed,
    }
    return recipe.with_values({name: seed + number for name, seed in seeds.items()})
