"""Which searched settings a study's gain and its retention hang on, each by itself (PED-ANOVA, arXiv 2304.10255).

For the two objectives together Optuna tells what decides about the Pareto front, which is another question: a setting that moves
both alike decides nothing there.
"""

from __future__ import annotations

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tuning.candidates import SCORE_KEY

GAIN, RETENTION = "domain gain", "retention"
LEAST_TRIALS, BEST = 10, 5  # complete ones before anything is told; how many of them the best should be, at least


def importances(study: optuna.Study) -> dict[str, dict[str, float]]:
    """By objective, each setting's share (they add up to 1), largest first; {} where too few trials are complete to tell."""
    num_complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if num_complete < LEAST_TRIALS:
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, BEST / num_complete)))
    found = {}
    for name, value in ((GAIN, _no_gain), (RETENTION, _loss)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that low values are the good ones: they are, of a loss
            try:
                shares = get_param_importances(study, evaluator=evaluator, target=value)
            except (ValueError, RuntimeError):  # nothing was searched, or every trial has the same value
                shares = {}
        found[name] = {setting: float(share) for setting, share in shares.items()}
    return found


def too_few(study: optuna.Study) -> str:
    """Why nothing is told; empty where something is."""
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    return "" if complete >= LEAST_TRIALS else f"told from {LEAST_TRIALS} complete trials on, {complete} are"


def _no_gain(trial: FrozenTrial) -> float:
    return -float(trial.user_attrs[SCORE_KEY]["chosen"]["domain_gain"])


def _loss(trial: FrozenTrial) -> float:
    return -float(trial.user_attrs[SCORE_KEY]["retention"])
