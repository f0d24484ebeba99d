"""The removal experiment: is reasoning kept when the rows that influence names as costly are left out?

Without it, influence is the alignment of gradients and no more. The recipe is fitted again without the worst tenth of its rows,
without a random tenth and without the best, several seeds each and with the same number of steps, and read on items that no
query held. The random and the best ones are drawn from the buckets of like length that the worst lie in, as many from each, so
that no arm is left with longer rows than another; and where length is all that the scores see, random rows do the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.evaluate import Planned
from evaluation.task import Example
from tuning.arms import BACKBONE, Arm, ArmReadings, Contrast, contrast, key_of
from tuning.errors import BadRecipe
from tuning.ground import Ground
from tuning.influence import Influence
from tuning.methods.sft import SFTSpec
from tuning.plan import generated_plan, likelihood_plan
from tuning.recipe import Recipe

WORST, RANDOM, BEST = "without the worst", "without random rows", "without the best"
NAMES = (WORST, RANDOM, BEST)
NUM_BUCKETS = 5
ALIGNMENT, CONFIRMED, REFUTED = "gradient alignment", "removal experiment", "gradient alignment, not borne out by removal"


def arms(
    examples: Sequence[Example], found: Sequence[Influence], share: float, method: SFTSpec, seeds: Iterable[int]
) -> list[Arm]:
    """All three under the first seed, then under the next. Random rows are drawn anew for each seed; the others are the same."""
    by_cost = sorted(range(len(found)), key=lambda index: found[index].retention)
    worst = set(by_cost[: round(len(found) * share)])
    buckets = [(bucket, len(worst.intersection(bucket))) for bucket in length_buckets(found)]
    best = {index for bucket, count in buckets for index in [one for one in by_cost if one in bucket][len(bucket) - count :]}
    if not worst:
        raise BadRecipe(f"A share of {share:g} of {len(found)} rows is none. Attribute more rows, or leave out a larger share.")
    made = []
    for seed in seeds:
        rng = random.Random(f"removal/{seed}")
        drawn = {index for bucket, count in buckets for index in rng.sample(bucket, count)}
        for name, left_out in ((WORST, worst), (RANDOM, drawn), (BEST, best)):
            kept = [example for index, example in enumerate(examples) if index not in left_out]
            made.append(Arm(name, seed, kept, method))
    return made


def check_removable(method: SFTSpec) -> None:
    """Raises BadRecipe where a row that is left out changes another."""
    if method.target == "mixed":
        raise BadRecipe(
            "Rows are left out of a fit to see what they did, but with method.target = 'mixed' the rows behind them would get "
            "the other target. Set it to 'rationale' or 'answer'."
        )


def length_buckets(found: Sequence[Influence]) -> list[list[int]]:
    """Indices of the rows in at most five buckets of about equal size, from short to long."""
    by_length = sorted(range(len(found)), key=lambda index: (found[index].tokens, index))
    return [list(map(int, part)) for part in np.array_split(by_length, min(NUM_BUCKETS, len(found)))]


def reading_plan(recipe: Recipe, ground: Ground) -> list[Planned]:
    """Of the select split: queries are of the search split."""
    plan = likelihood_plan(recipe, ground.domain, "select", ground.not_measurable)
    return [*plan, *generated_plan(recipe, "select", ground.not_measurable)]


@dataclass(frozen=True)
class Removal:
    """What leaving rows out did, against the backbone and against leaving out as many random ones."""

    against_backbone: dict[str, dict[str, Contrast]]  # by arm, then by `measure/task`
    against_random: dict[str, dict[str, Contrast]]
    chains: dict[str, Contrast]  # against random, the chains of all written families together

    @classmethod
    def of(cls, found: Sequence[ArmReadings], plan: Sequence[Planned]) -> Removal:
        keys = [key_of(planned) for planned in plan]
        chains = [key for key in keys if key.startswith("chain_likelihood/")]
        return cls(
            {name: {key: contrast(found, name, BACKBONE, [key]) for key in keys} for name in NAMES},
            {name: {key: contrast(found, name, RANDOM, [key]) for key in keys} for name in (WORST, BEST)},
            {name: contrast(found, name, RANDOM, chains) for name in (WORST, BEST)},
        )

    @property
    def evidence(self) -> str:
        """Confirmed where leaving the worst out kept more than leaving random rows out, beyond chance and in every seed."""
        return CONFIRMED if self.chains[WORST].is_gain else REFUTED

    def sentence(self) -> str:
        change = self.chains[WORST].change
        told = f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}] nats per token of the protected chains"
        if self.evidence == CONFIRMED:
            return f"Leaving the worst rows out instead of random ones kept {told}, in every seed: these rows cost reasoning."
        return (
            f"Leaving the worst rows out instead of random ones changed {told}, which is not a gain beyond chance in every seed: "
            "read the scores as gradient alignment only."
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "against_backbone": _dicts(self.against_backbone),
            "against_random": _dicts(self.against_random),
            "chains_against_random": {name: found.as_dict() for name, found in self.chains.items()},
            "said": self.sentence(),
        }


def _dicts(found: dict[str, dict[str, Contrast]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {name: {key: one.as_dict() for key, one in by_key.items()} for name, by_key in found.items()}
