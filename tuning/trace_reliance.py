"""Trace reliance: does what a domain's traces say matter, or only that there are some?

Four arms of one recipe (after Stechly et al. 2025, arXiv 2505.13775), same rows, answers, steps and seeds: N normal traces,
W traces swapped between rows, F filler of equal token length, A answers only. All are asked by the prompt to reason and write
under the same limit of tokens. acc_N - acc_W is the reliance (TRI), acc_F - acc_A what computing longer gives, acc_W - acc_F what
the form gives.

The reading holds for this recipe, backbone and form of trace: arms that come out alike do not say that traces never matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.evaluate import Planned
from evaluation.measures import MEASURES
from evaluation.retention import capped_retention, search_measure
from evaluation.task import Example
from tuning.arms import BACKBONE, Arm, ArmReadings, ArmStudy, Contrast, contrast, key_of
from tuning.batches import check_rationales
from tuning.ground import Ground
from tuning.methods.sft import SFTSpec
from tuning.plan import generated_plan, likelihood_plan, margins_of
from tuning.recipe import Recipe
from tuning.traces import filled, swapped

ACCURACY = "reasoned_choice"
ARMS = {"N": "normal traces", "W": "swapped traces", "F": "filler", "A": "answers only"}
EFFECTS = {"reliance": ("N", "W"), "compute": ("F", "A"), "form": ("W", "F")}
_POOLED = "chain_likelihood"  # of the families' measures, the one whose items may be pooled: one unit, written families only


def arms(ground: Ground, method: SFTSpec, seeds: Sequence[int], trace_loss: bool = True) -> list[Arm]:
    """All four under the first seed, then under the next. DataError where rows have no traces, or traces cannot be swapped.

    Without `trace_loss` the traces are read and not learnt: arm W then spends nothing on learning noise.
    """
    backbone, rows = ground.backbone, list(ground.examples)
    check_rationales(rows, "rationale", "A study of traces")
    reasoned = method.model_copy(update={"target": "rationale", "prompt": "reasoning", "trace_loss": trace_loss})
    prepared: dict[str, tuple[Sequence[Example], SFTSpec]] = {
        "N": (rows, reasoned),
        "W": (swapped(backbone, rows, method.seed), reasoned),
        "F": (filled(backbone, rows), reasoned),
        "A": (rows, method.model_copy(update={"target": "answer", "prompt": "reasoning"})),
    }
    return [Arm(name, seed, *prepared[name]) for seed in seeds for name in ARMS]


def reading_plan(recipe: Recipe, ground: Ground) -> list[Planned]:
    """Of the select split: the domain after its own trace and at once, and every measurable family as the search guards it."""
    direct, *families = likelihood_plan(recipe, ground.domain, "select", ground.not_measurable)
    reasoned = Planned(MEASURES[ACCURACY], ground.domain, direct.examples, "domain")
    return [reasoned, direct, *families, *generated_plan(recipe, "select", ground.not_measurable)]


@dataclass(frozen=True)
class TraceReliance:
    """What the four arms read. `retention` is by arm and by `measure/family`, each adapted minus backbone."""

    accuracies: Mapping[str, float]
    trace_validity: Mapping[str, float | None]  # share of the written steps that hold; None where nothing checks them
    trace_tokens: Mapping[str, float]
    fit_tokens: Mapping[str, float]
    effects: Mapping[str, Contrast]
    retention: Mapping[str, Mapping[str, Contrast]]
    capped: Mapping[str, float]  # by arm: mean over the families of min(0, change / margin), as a sweep reads it
    swapped_chains: Contrast  # W against N over the chains of all written families
    num_seeds: int

    @classmethod
    def of(cls, found: Sequence[ArmReadings], recipe: Recipe, plan: Sequence[Planned]) -> TraceReliance:
        """The arms must all be there."""
        domain = next(key_of(planned) for planned in plan if planned.measure.name == ACCURACY)
        families = [key_of(planned) for planned in plan if planned.role == "protected"]
        guards = [planned for planned in plan if planned.role == "protected" and planned.measure == search_measure(planned.task)]
        margins = {key_of(guard): margins_of(recipe, [guard])[guard.task.name] for guard in guards}
        retention = {arm: {key: contrast(found, arm, BACKBONE, [key]) for key in families} for arm in ARMS}

        def part(name: str, arm: str) -> float:
            return _mean([one.part_means[domain][name] for one in found if one.name == arm])

        validity = {arm: part("step_validity", arm) for arm in ARMS}
        return cls(
            {arm: _mean([_mean(one.values[domain]) for one in found if one.name == arm]) for arm in ARMS},
            {arm: value if value == value else None for arm, value in validity.items()},
            {arm: part("trace_tokens", arm) for arm in ARMS},
            {arm: _mean([one.fit["num_tokens"] for one in found if one.name == arm]) for arm in ARMS},
            {effect: contrast(found, *pair, [domain]) for effect, pair in EFFECTS.items()},
            retention,
            {arm: capped_retention({key: retention[arm][key].change.mean for key in margins}, margins) for arm in ARMS},
            contrast(found, "W", "N", [key for key in margins if key.startswith(f"{_POOLED}/")]),
            sum(one.name == "N" for one in found),
        )

    @property
    def is_scaffolding(self) -> bool:
        """The interval of the reliance holds 0: that what the traces say matters is not shown."""
        return self.effects["reliance"].spans_zero

    @property
    def best_retaining(self) -> str:
        return max(ARMS, key=lambda arm: self.capped[arm])

    def sentences(self) -> list[str]:
        """What the numbers say, for whoever decides about the recipe."""
        reliance = self.effects["reliance"].change
        share = f"{reliance.mean:+.3f} [{reliance.low:+.3f}, {reliance.high:+.3f}]"
        best = self.best_retaining
        if self.is_scaffolding:
            said = [
                f"Traces of this domain are scaffolding: normal minus swapped traces gives {share}, which holds 0. Do not report "
                f"trace quality as evidence of reasoning, and prefer the arm with the best retention ({best}, {ARMS[best]})."
            ]
        elif reliance.low > 0:
            said = [f"Answers of this domain rely on what their traces say: normal minus swapped traces gives {share}."]
        else:
            said = [f"Swapped traces do better than normal ones: {share}. Look at the traces before anything is fitted on them."]
        if self.is_scaffolding and self.swapped_chains.is_loss:
            lost = self.swapped_chains.change
            said.append(
                f"Garbage traces cost general reasoning: at like domain accuracy the swapped arm is {lost.mean:+.4f} "
                f"[{lost.low:+.4f}, {lost.high:+.4f}] nats per token from the normal one on the protected chains."
            )
        if self.num_seeds < 3:
            said.append(f"{self.num_seeds} training seed(s): one fit can collapse, which fewer than three hardly show.")
        return said

    def as_dict(self) -> dict[str, Any]:
        return {
            "arms": {
                arm: {
                    "traces": words,
                    "accuracy": self.accuracies[arm],
                    "trace_validity": self.trace_validity[arm],
                    "trace_tokens": self.trace_tokens[arm],
                    "fit_tokens": self.fit_tokens[arm],
                    "retention": {key: found.as_dict() for key, found in self.retention[arm].items()},
                    "capped_retention": self.capped[arm],
                }
                for arm, words in ARMS.items()
            },
            "effects": {effect: found.as_dict() for effect, found in self.effects.items()},
            "swapped_minus_normal_retention": self.swapped_chains.as_dict(),
            "scaffolding": self.is_scaffolding,
            "seeds": self.num_seeds,
            "said": self.sentences(),
        }


def study_of(recipe: Recipe, ground: Ground, home: Path, num_seeds: int = 3, trace_loss: bool = True) -> ArmStudy[TraceReliance]:
    """The four arms under each seed; see `arms`."""
    wanted, plan = arms(ground, recipe.sft, range(num_seeds), trace_loss), reading_plan(recipe, ground)

    def told(found: Sequence[ArmReadings]) -> TraceReliance:
        return TraceReliance.of(found, recipe, plan)

    return ArmStudy("trace_reliance", recipe, ground, home, wanted, plan, told, {"trace_loss": trace_loss})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
