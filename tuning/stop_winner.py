"""Trials that were read on a part of their items: the one that would be brought before the gate first is read in full before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.candidates import candidate_of, in_order, settled_key
from tuning.stop_items import is_partial
from tuning.trial import Outcome


def unsettled(study: optuna.Study) -> FrozenTrial | None:
    """The best trial by all that is known, where only a part of its items was read; None where the best was read in full."""
    trials = {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    ordered = in_order([found for trial in trials.values() if (found := candidate_of(study, trial, partial=True))])
    if not ordered or not is_partial(ordered[0].score):
        return None
    return trials[ordered[0].trial]


def settle(study: optuna.Study, read_in_full: Callable[[FrozenTrial], Outcome]) -> list[int]:
    """Reads the best trial in full until the best is one that was; returns the numbers of those that were read.

    One that cannot be read in full is no candidate.
    """
    done = []
    while (trial := unsettled(study)) is not None:
        outcome = read_in_full(trial)
        score: dict[str, Any] = outcome.score if outcome.state == "complete" else {}
        study.set_user_attr(settled_key(trial.number), score)
        done.append(trial.number)
    return done
