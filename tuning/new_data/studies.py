"""The short sweeps of a round: from the champion, with and without old rows, and with and without the orthogonality penalty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.spec import Range
from registry.tracking import Tracking
from tuning.continuing import pinned
from tuning.new_data.tasks import RoundTasks
from tuning.recipe import Recipe, search_marks

RATE = "method.learning_rate"
SLOWER = 0.3  # of the champion's rate, the second point of each arm: a fit that goes on needs smaller steps


@dataclass(frozen=True)
class RoundArm:
    name: str
    recipe: Recipe


def round_arms(
    champion: Recipe, start: Path, tasks: RoundTasks, earlier: Sequence[str], key: str, trials: int, tracking: Tracking
) -> list[RoundArm]:
    """Two arms, and two more that stay out of the subspaces of `earlier`: champions of other names, as models:/NAME/VERSION.

    The penalty is for a LoRA whose inputs are trained, and needs an earlier one: without, there are the two arms.
    """
    apart = tuple(earlier) if "lora" in champion.adapter.kind.split("+") and not champion.adapter.lora.freeze_a else ()
    kinds: Mapping[str, tuple[Path, tuple[str, ...]]] = {
        "replay": (tasks.with_old, ()),
        "new": (tasks.new_alone, ()),
        **({"replay-apart": (tasks.with_old, apart), "new-apart": (tasks.new_alone, apart)} if apart else {}),
    }
    found = []
    for arm, (domain, others) in kinds.items():
        recipe = champion.with_values(_values(champion, f"{_short(champion.name)}-{key}-{arm}", domain, start, others, trials))
        found.append(RoundArm(arm, pinned(recipe, tracking)))
    return found


def _values(champion: Recipe, name: str, domain: Path, start: Path, others: tuple[str, ...], trials: int) -> dict[str, object]:
    """Both points are enqueued, so that a round that was killed tries the same ones again."""
    mark = search_marks(champion.method.name)[RATE]
    assert isinstance(mark, Range)
    rate = min(max(champion.method.learning_rate, mark.low), mark.high)
    return {
        "name": name,
        "domain": str(domain),
        "adapter.warm_start": str(start),
        "adapter.orthogonal_to": others,
        "adapter.lora.init": "default",
        RATE: rate,
        "search": (RATE,),
        "ranges": {},
        "start": ({RATE: max(SLOWER * rate, mark.low)},) if SLOWER * rate > mark.low else (),
        "study.trials": trials,
        "study.min_trials": 0,
        "study.time_budget_s": None,
    }


def _short(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)[:40]
