"""Whether there is anything to learn from new rows: how often the champion is right on them and on the old ones it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.engine import Engine
from evaluation.measures.choice import ScoredOptions, score_options
from evaluation.statistics import wilson
from evaluation.task import Example, Task, split_of
from tuning.new_data.drawn import one_a_group

READ_ROWS = 300  # of each side, one a group, drawn by the seed
HINT_NATS = 3.0  # by which both must find another option likelier: some twenty times


@dataclass(frozen=True)
class Hint:
    """A row whose answer may be wrong: what stands there, and the option that both hold likelier."""

    id: str
    answer: str
    likelier: str
    champion_nats: float  # the answer's log-probability minus that option's
    backbone_nats: float


@dataclass(frozen=True)
class Learnable:
    """Shares right of the champion; `lost` is old minus new with a 95 % interval (Newcombe 1998, method 10)."""

    old: float
    new: float
    num_old: int
    num_new: int
    lost: float
    low: float
    high: float
    hints: tuple[Hint, ...]
    hinted: float = 0.0  # the share of the new rows that are hinted at
    old_hinted: float = 0.0  # that of the old rows, which are no new labels: so many are to be expected where none is wrong

    @property
    def is_lost(self) -> bool:
        """Whether the champion is shown to do worse on the new rows."""
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"the champion is right on {self.new:.0%} of {self.num_new} new rows, and on {self.old:.0%} of {self.num_old} old "
            f"ones that it was not fitted on: {-self.lost:+.3f} [{-self.high:+.3f}, {-self.low:+.3f}]"
        )


def learnable(
    engine: Engine, backbone: Backbone, champion: str, task: Task, old: Sequence[Example], new: Sequence[Example]
) -> Learnable:
    """`champion` is loaded under that name. Rows of the gate split are read by no one before the gate, and so not here.

    Of the old rows those of the search and select splits count, of the new ones all others: none of them was fitted.
    """
    old = one_a_group([row for row in old if split_of(row.group) in ("search", "select")], READ_ROWS, "learnable")
    unread = [row for row in new if split_of(row.group) != "gate"]
    by_champion = dict(zip((row.id for row in unread), score_options(engine, backbone, champion, task, unread), strict=True))
    by_backbone = dict(zip((row.id for row in unread), score_options(engine, backbone, None, task, unread), strict=True))
    hints = [hint for row in unread if (hint := hint_of(row, by_champion[row.id], by_backbone[row.id]))]
    drawn = one_a_group(unread, READ_ROWS, "learnable")
    right_new = sum(_is_right(by_champion[row.id]) for row in drawn)
    old_by_champion, old_by_backbone = (score_options(engine, backbone, name, task, old) for name in (champion, None))
    right_old = sum(map(_is_right, old_by_champion))
    old_hints = [hint_of(*one) for one in zip(old, old_by_champion, old_by_backbone, strict=True)]
    told = compared_shares(right_old, len(old), right_new, len(drawn), hints)
    return replace(told, hinted=len(hints) / len(unread), old_hinted=sum(one is not None for one in old_hints) / len(old))


def compared_shares(right_old: int, num_old: int, right_new: int, num_new: int, hints: Sequence[Hint] = ()) -> Learnable:
    was, now = right_old / num_old, right_new / num_new
    (low_old, high_old), (low_new, high_new) = wilson(right_old, num_old), wilson(right_new, num_new)
    low = was - now - ((was - low_old) ** 2 + (high_new - now) ** 2) ** 0.5
    high = was - now + ((high_old - was) ** 2 + (now - low_new) ** 2) ** 0.5
    return Learnable(was, now, num_old, num_new, was - now, low, high, tuple(hints))


def _is_right(found: ScoredOptions) -> bool:
    return found.used[0] > max(found.used[1:])


def hint_of(row: Example, champion: ScoredOptions, backbone: ScoredOptions) -> Hint | None:
    """Where both hold the same other option likelier, by the whole text of the answers."""
    rivals = [choice for choice in dict.fromkeys(row.choices or ()) if choice != row.answer]
    best = max(range(len(rivals)), key=lambda place: champion.used[place + 1])
    nats = [found.sums[0] - found.sums[best + 1] for found in (champion, backbone)]
    below = [found.used[0] < found.used[best + 1] for found in (champion, backbone)]
    if all(below) and max(nats) <= -HINT_NATS:
        return Hint(row.id, row.answer, rivals[best], *nats)
    return None
