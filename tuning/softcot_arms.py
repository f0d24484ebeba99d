"""What an assistant's soft thoughts are worth beyond a learned prompt, and a learned prompt beyond more room in the prompt.

Three arms of one recipe of soft thoughts, same rows, steps and seeds: `assistant` as the recipe says; `static`, in which as many
vectors are learnt in the same places and no assistant reads the question; `placeholder`, the same places with their unused tokens
and nothing learnt (the control that SoftCoT's paper calls UNK). A gain is the assistant's own only as far as it is above the
static arm: on templated data a static prompt may give all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from tuning.arms import BACKBONE, PLACEHOLDER, Arm, ArmReadings, ArmStudy, Contrast, contrast, key_of
from tuning.errors import BadRecipe
from tuning.ground import Ground
from tuning.plan import generated_plan, likelihood_plan
from tuning.recipe import Recipe

ASSISTANT, STATIC = "assistant", "static"
ARMS = {ASSISTANT: "thoughts of an assistant", STATIC: "a learned prompt", PLACEHOLDER: "unused tokens, nothing learnt"}
EFFECTS = {"assistant": (ASSISTANT, STATIC), "learned prompt": (STATIC, PLACEHOLDER), "room": (PLACEHOLDER, BACKBONE)}


def arms(recipe: Recipe, ground: Ground, seeds: Sequence[int]) -> list[Arm]:
    """The placeholder once, then both fitted arms under each seed. BadRecipe for what has no such arms."""
    if recipe.adapter.kind != "softcot" or recipe.adapter.softcot.static:
        raise BadRecipe(
            f"The arms of soft thoughts are those of a recipe that fits an assistant's alone, but adapter.kind is "
            f'{recipe.adapter.kind!r} and adapter.softcot.static {recipe.adapter.softcot.static}. Set kind = "softcot" and '
            "static = false."
        )
    static = {"adapter.softcot.static": True}
    rows, method = ground.examples, recipe.method
    return [
        Arm(PLACEHOLDER, 0, rows, method, is_fitted=False),
        *(arm for seed in seeds for arm in (Arm(ASSISTANT, seed, rows, method), Arm(STATIC, seed, rows, method, static))),
    ]


def reading_plan(recipe: Recipe, ground: Ground) -> list[Planned]:
    """Of the select split: the domain as it is written and by its likelihood, and every measurable family as a search guards it.

    The first decides: several sets of thoughts vote where a reply is written, and one set is best seen by what its own steps do
    for the options.
    """
    direct, *families = likelihood_plan(recipe, ground.domain, "select", ground.not_measurable)
    written, reasoned = (
        Planned(MEASURES[name], ground.domain, direct.examples, "domain") for name in ("generation", "reasoned_choice")
    )
    first = [written, reasoned] if recipe.adapter.softcot.num_chains > 1 else [reasoned, written]
    return [*first, direct, *families, *generated_plan(recipe, "select", ground.not_measurable)]


@dataclass(frozen=True)
class SoftCoTArms:
    """What the arms read. `retention` is by arm and by `measure/family`, each adapted minus backbone."""

    measure: str
    accuracies: Mapping[str, float]  # the backbone's among them
    effects: Mapping[str, Contrast]  # on the first of the plan's measures
    domain: Mapping[str, Mapping[str, Contrast]]  # by measure, then by effect
    retention: Mapping[str, Mapping[str, Contrast]]
    num_seeds: int

    @classmethod
    def of(cls, found: Sequence[ArmReadings], plan: Sequence[Planned]) -> SoftCoTArms:
        """The arms must all be there."""
        domain = [key_of(planned) for planned in plan if planned.role == "domain"]
        families = [key_of(planned) for planned in plan if planned.role == "protected"]
        effects = {key: {name: contrast(found, *pair, [key]) for name, pair in EFFECTS.items()} for key in domain}

        def accuracy(name: str) -> float:
            means = [sum(one.values[domain[0]]) / len(one.values[domain[0]]) for one in found if one.name == name]
            return sum(means) / len(means)

        return cls(
            domain[0],
            {name: accuracy(name) for name in (BACKBONE, *ARMS)},
            effects[domain[0]],
            effects,
            {arm: {key: contrast(found, arm, BACKBONE, [key]) for key in families} for arm in ARMS},
            sum(one.name == ASSISTANT for one in found),
        )

    @property
    def is_credited(self) -> bool:
        """The assistant's arm is above the static one, in the interval and under every seed."""
        return self.effects["assistant"].is_gain

    def sentences(self) -> list[str]:
        change = self.effects["assistant"].change
        share = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        if self.is_credited:
            said = [f"The assistant adds to a learned prompt: {share} in domain accuracy over the static arm."]
        elif self.effects["assistant"].is_loss:
            said = [f"The assistant does worse than a learned prompt: {share}. Fit the static arm instead."]
        else:
            said = [f"No gain is the assistant's: over the static arm it has {share}. Credit what there is to a learned prompt."]
        if not self.effects["learned prompt"].is_gain:
            said.append("The learned prompt itself is not above its own places left unlearnt: there is no gain to divide.")
        if self.num_seeds < 3:
            said.append(f"{self.num_seeds} training seed(s): one fit can collapse, which fewer than three hardly show.")
        return said

    def as_dict(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "accuracies": dict(self.accuracies),
            "effects": {name: found.as_dict() for name, found in self.effects.items()},
            "domain": {key: {name: found.as_dict() for name, found in each.items()} for key, each in self.domain.items()},
            "retention": {arm: {key: found.as_dict() for key, found in kept.items()} for arm, kept in self.retention.items()},
            "credited": self.is_credited,
            "seeds": self.num_seeds,
            "said": self.sentences(),
        }


def study_of(recipe: Recipe, ground: Ground, home: Path, num_seeds: int = 3) -> ArmStudy[SoftCoTArms]:
    wanted, plan = arms(recipe, ground, range(num_seeds)), reading_plan(recipe, ground)

    def told(found: Sequence[ArmReadings]) -> SoftCoTArms:
        return SoftCoTArms.of(found, plan)

    return ArmStudy("softcot_arms", recipe, ground, home, wanted, plan, told, {"study": "softcot-arms"})
