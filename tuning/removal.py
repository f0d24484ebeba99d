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
ALIGNMENT, CONFIRMED = "gradient alignment", "removal experiment"
UNDECIDED, REFUTED = "gradient alignment, removal undecided", "gradient alignment, refuted by removal"


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
    cost: Contrast  # on the same chains, the fit without random rows against the backbone: what there is to keep

    @classmethod
    def of(cls, found: Sequence[ArmReadings], plan: Sequence[Planned]) -> Removal:
        keys = [key_of(planned) for planned in plan]
        chains = [key for key in keys if key.startswith("chain_likelihood/")]
        return cls(
            {name: {key: contrast(found, name, BACKBONE, [key]) for key in keys} for name in NAMES},
            {name: {key: contrast(found, name, RANDOM, [key]) for key in keys} for name in (WORST, BEST)},
            {name: contrast(found, name, RANDOM, chains) for name in (WORST, BEST)},
            contrast(found, RANDOM, BACKBONE, chains),
        )

    @property
    def evidence(self) -> str:
        """Confirmed where leaving the worst out kept more than leaving random rows out, beyond chance and in every seed.

        Refuted where it kept less beyond chance; else undecided: a few fits differ by their seeds alone as much as by their rows.
        """
        worst = self.chains[WORST]
        return CONFIRMED if worst.is_gain else REFUTED if worst.change.high < 0 else UNDECIDED

    def sentence(self) -> str:
        worst = self.chains[WORST]
        told = f"{_interval(worst)} nats per token of the protected chains"
        if self.evidence == CONFIRMED:
            return f"Leaving the worst rows out instead of random ones kept {told}, in every seed: these rows cost reasoning."
        if self.evidence == REFUTED:
            return f"Leaving the worst rows out instead of random ones lost {told}: the scores do not hold for this fit."
        kept, seeds = sum(mean > 0 for mean in worst.by_seed), len(worst.by_seed)
        said = (
            f"Leaving the worst rows out instead of random ones changed {told}, more kept in {kept} of {seeds} seeds, which "
            "decides nothing: read the scores as gradient alignment only."
        )
        if not self.cost.is_loss:
            return f"{said} The fit itself changed these chains by {_interval(self.cost)}: no clear loss to blame rows for."
        return f"{said} More --seeds narrow the interval; what is fitted already is kept."

    def as_dict(self) -> dict[str, Any]:
        return {
            "against_backbone": _dicts(self.against_backbone),
            "against_random": _dicts(self.against_random),
            "chains_against_random": {name: found.as_dict() for name, found in self.chains.items()},
            "chains_against_backbone": self.cost.as_dict(),
            "evidence": self.evidence,
            "said": self.sentence(),
        }


def _interval(found: Contrast) -> str:
    return f"{found.change.mean:+.4f} [{found.change.low:+.4f}, {found.change.high:+.4f}]"


def _dicts(found: dict[str, dict[str, Contrast]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {name: {key: one.as_dict() for key, one in by_key.items()} for name, by_key in found.items()}
