"""A trial that ended without a result is tried again: the same values, from the checkpoint of its fit, a few times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from adapters.whole_file import write_whole
from tuning.candidates import DIRECTORY_KEY
from tuning.memory import MAX_TRIED
from tuning.recipe import Recipe
from tuning.space import search_digest
from tuning.trial import ADAPTER, RESULT, Outcome

MAX_RETRIES = 1  # of a trial that died
MAX_LOST = 3  # of one whose worker was lost: that says little about the trial
TRIES_KEY, LOST_KEY, RETRY_KEY = "tries", "lost", "retry_of"
_ASKED = "asked.json"  # beside a trial's result: what it was the result of


def try_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Enqueues the values of a trial that died once more, up to a limit; False when the limit is reached."""
    if tries(trial) >= MAX_RETRIES:
        return False
    study.enqueue_trial(trial.params, user_attrs={**continued(trial), TRIES_KEY: tries(trial) + 1})
    return True


def try_lost_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """The same for a trial whose worker was lost, in a kill or by its heartbeats; what it had finished is not made again."""
    lost = int(trial.user_attrs.get(LOST_KEY, 0))
    if trial.params and lost < MAX_LOST:
        study.enqueue_trial(trial.params, user_attrs={**continued(trial), LOST_KEY: lost + 1})


def hand_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """The same for a trial that its worker was told to leave: that counts as no try."""
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs=continued(trial))


def continued(trial: FrozenTrial) -> dict[str, Any]:
    """What ties a trial to the one that it goes on from: its number, and the directory with the checkpoint of its fit."""
    kept = (DIRECTORY_KEY, TRIES_KEY, LOST_KEY)
    return {**{key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}, RETRY_KEY: trial.number}


def tries(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(TRIES_KEY, 0))


def note_asked(directory: Path, recipe: Recipe, reference: bool) -> None:
    """Says whose result the directory will hold."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / _ASKED, json.dumps({"asked": _digest(recipe, reference)}))


def kept_outcome(directory: Path, recipe: Recipe, reference: bool) -> Outcome | None:
    """The result that a trial of these very values left here before its worker was lost; None where there is none."""
    asked, result = directory / _ASKED, directory / RESULT
    if not asked.is_file() or not result.is_file():
        return None
    if json.loads(asked.read_text()) != {"asked": _digest(recipe, reference)}:
        return None
    outcome = Outcome.model_validate_json(result.read_text())
    complete = outcome.state == "complete" and (directory / ADAPTER).is_dir()
    may_pass = outcome.out_of_memory and len(outcome.micro_batch_tokens) < MAX_TRIED  # with half the micro-batch
    return outcome if complete or (outcome.state == "failed" and not may_pass) else None


def _digest(recipe: Recipe, reference: bool) -> str:
    return hashlib.sha256(f"{search_digest(recipe)}/{reference}".encode()).hexdigest()
