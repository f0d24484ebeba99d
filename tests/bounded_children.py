"""Stand-ins for the child of a trial that has so much memory and no more."""

from __future__ import annotations

from collections.abc import Callable

from tuning.isolation import ChildDied
from tuning.trial import Job, Outcome, Report


def fits_below(limit: int, seen: list[int], otherwise: Callable[[], Outcome]) -> Callable[..., Outcome]:
    """A child that has room for so many tokens at once."""

    def isolated(job: Job, report: Report, *asked: object) -> Outcome:
        seen.append(job.recipe.method.micro_batch_tokens)
        return Outcome(state="complete") if seen[-1] < limit else otherwise()

    return isolated


def no_room() -> Outcome:
    return Outcome(state="failed", reason="out of memory: no room.", out_of_memory=True)


def killed() -> Outcome:
    raise ChildDied("exit code -9", killed=True)
