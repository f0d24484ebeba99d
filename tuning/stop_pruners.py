"""Optuna's own pruners, for a study with one objective: what each is told, and when.

"median" and "hyperband" are told the gain at each checkpoint, at the largest scale that is tolerable there; a step is a percent
of the fit. "wilcoxon" is told what each domain item changed, in an order that is shuffled once for all trials.
"""

from __future__ import annotations

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner

from tuning.stop_items import SLICE
from tuning.stop_settings import StopRecipe

P_VALUE = 0.05  # at each of several looks; docs/results.md says how often a trial that is better is ended by chance
REDUCTION = 2  # of Hyperband: both usual checkpoints are then rungs


def pruner_of(stop: StopRecipe) -> BasePruner:
    if stop.pruner == "median":
        return MedianPruner(n_startup_trials=5)
    if stop.pruner == "hyperband" and stop.checkpoints:
        return HyperbandPruner(percent(stop.checkpoints[0]), 100, REDUCTION)
    if stop.pruner == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=P_VALUE, n_startup_steps=SLICE)
    return NopPruner()


def percent(checkpoint: float) -> int:
    return max(1, round(100 * checkpoint))


def is_pruned(trial: optuna.Trial) -> bool:
    """What the pruner says. Its warnings are of best trials that were read on fewer items themselves: it then compares those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trial.should_prune()
