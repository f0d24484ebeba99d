"""What is left of a study's budget: trials, time and cost, counted over the study and all its workers, not over one process.

Time is the time in which at least one trial of the study ran: two workers at once use it once, and a pause uses none. Cost is
what all trials took together, failed ones too, at the price of one worker. A trial may start only where one longer than any so
far (by ROOM) would still end within both. What a killed worker's trial took is known only until it was found dead; it counts
for that long, and for no longer than the longest trial that ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.asked import limits
from tuning.errors import BadRecipe
from tuning.recipe import Recipe

ROOM = 1.25  # by which a trial of a kind not yet seen may outlast the longest so far
# User attributes of a trial: what it took, when it began (seconds since the epoch, by its worker's clock), and who runs it.
SECONDS_KEY, BEGAN_KEY, WORKER_KEY = "seconds", "began", "worker"
# The trial that it goes on from; and whether that one's result was there already, made before its worker was lost.
RETRY_KEY, RESUMED_KEY = "retry_of", "resumed"
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Spent:
    wall_s: float  # in which at least one trial ran
    worker_s: float  # of all trials together
    longest_s: float  # of the trials that ended; 0 where none did


@dataclass(frozen=True)
class Left:
    """`used_up` says why no further trial may begin; empty where one may."""

    trials: int  # to be begun: neither finished nor running
    running: int
    seconds: float | None  # None: no limit
    cost: float | None
    used_up: str = ""
    may_come: bool = False  # a trial of another worker, where it dies, would leave one to begin

    @property
    def may_begin(self) -> bool:
        return not self.used_up


def left(study: optuna.Study, recipe: Recipe, now: float | None = None, before: int | None = None) -> Left:
    """Read before each trial. `now` is in seconds since the epoch.

    `before`: for the trial of that number, which runs already: of those that run, the ones with smaller numbers alone count.
    """
    trials, bounds = study.get_trials(deepcopy=False), limits(study, recipe)
    if before is not None:
        trials = [trial for trial in trials if trial.state != TrialState.RUNNING or trial.number < before]
    used = _spent(trials, time.time() if now is None else now)
    finished = [trial for trial in trials if trial.state in _ENDED]
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    to_begin = max(0, bounds.trials - len(finished) - running)
    seconds = None if bounds.time_budget_s is None else bounds.time_budget_s - used.wall_s
    cost = None if bounds.max_cost is None else bounds.max_cost - cost_of(used.worker_s, bounds.price_per_hour)
    why = ""
    if not to_begin:
        why = f"{len(finished)} of {bounds.trials} trials are finished" + (f" and {running} are running" if running else "")
    elif bounds.time_budget_s is not None and not _has_time(trials, bounds.min_trials, bounds.time_budget_s, used):
        why = f"time budget of {bounds.time_budget_s:.0f} s is used up by {len(finished)} trials"
    elif cost is not None and cost < cost_of(_to_come_s(trials, used, now), bounds.price_per_hour):
        why = f"budget of {money(bounds.max_cost or 0.0, bounds.currency)} is used up by {len(finished)} trials"
    return Left(to_begin, running, seconds, cost, why, bool(running and not to_begin and len(finished) < bounds.trials))


def spent(study: optuna.Study, now: float | None = None) -> Spent:
    return _spent(study.get_trials(deepcopy=False), time.time() if now is None else now)


def cost_of(worker_s: float, price_per_hour: float | None) -> float:
    """0 where no price is known."""
    return worker_s / 3600 * (price_per_hour or 0.0)


def price_of(text: str) -> tuple[float, str]:
    """The price of an hour and its currency: "2.50 EUR", or the number alone. BadRecipe for anything else."""
    number, _, currency = text.strip().partition(" ")
    try:
        price = float(number)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price > 0):
        raise BadRecipe(f"A price per hour is a number above 0 and may name a currency, as in '2.50 EUR', but got {text!r}.")
    return price, currency.strip()


def money(amount: float, currency: str = "") -> str:
    return f"{amount:.2f} {currency}".rstrip()


def _has_time(trials: Sequence[FrozenTrial], min_trials: int, budget_s: float, used: Spent) -> bool:
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    if not used.longest_s or complete < min_trials:
        return used.wall_s <= 2 * budget_s
    return used.wall_s + ROOM * used.longest_s <= budget_s


def _to_come_s(trials: Sequence[FrozenTrial], used: Spent, now: float | None) -> float:
    """What one more trial and those that run may still take, each as long as the longest with room."""
    longest, clock = ROOM * used.longest_s, time.time() if now is None else now
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    return longest + sum(max(0.0, longest - (clock - began_at(trial, clock))) for trial in running)


def _spent(trials: Sequence[FrozenTrial], now: float) -> Spent:
    longest = max(
        (float(t.user_attrs[SECONDS_KEY]) for t in trials if t.state in _ENDED and SECONDS_KEY in t.user_attrs), default=0.0
    )
    # What a lost worker had finished is the time of the trial that took its result.
    taken = {trial.user_attrs.get(RETRY_KEY) for trial in trials if RESUMED_KEY in trial.user_attrs}
    counted = [trial for trial in trials if trial.state != TrialState.WAITING and trial.number not in taken]
    spans = [(began_at(trial, now), took_s(trial, longest, now)) for trial in counted]
    wall, until = 0.0, float("-inf")
    for began, took in sorted(spans):
        wall += max(0.0, began + took - max(began, until))
        until = max(until, began + took)
    return Spent(wall, sum(took for _, took in spans), longest)


def began_at(trial: FrozenTrial, now: float) -> float:
    if BEGAN_KEY in trial.user_attrs:
        return float(trial.user_attrs[BEGAN_KEY])
    return trial.datetime_start.timestamp() if trial.datetime_start else now


def took_s(trial: FrozenTrial, longest_s: float, now: float) -> float:
    if SECONDS_KEY in trial.user_attrs:
        return float(trial.user_attrs[SECONDS_KEY])
    if trial.state == TrialState.RUNNING:
        return max(0.0, now - began_at(trial, now))
    if trial.datetime_start is None or trial.datetime_complete is None:
        return 0.0
    return min(max(0.0, trial.datetime_complete.timestamp() - began_at(trial, now)), longest_s)
