"""A trial that ended without a result is tried again: the same values, from the checkpoint of its fit, a few times."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from adapters.whole_file import write_whole
from tuning.budget import RETRY_KEY
from tuning.candidates import DIRECTORY_KEY
from tuning.memory import MAX_TRIED
from tuning.recipe import Recipe
from tuning.space import search_digest
from tuning.trial import ADAPTER, RESULT, Outcome

MAX_RETRIES = 1  # of a trial that died
MAX_LOST = 3  # of one whose worker was lost: that says little about the trial
TRIES_KEY, LOST_KEY = "tries", "lost"
FAILURE_KEY = "failure"  # of a trial that failed with a reason; one whose worker was lost has none
AGAIN_KEY = "again"  # of a trial that is to fail: how it is enqueued then, by the names in _HOW
_LOCK = "running.lock"  # in a trial's directory, held by the worker that runs it
_ENQUEUED = "fixed_params"  # Optuna's own name
_ASKED = "asked.json"  # beside a trial's result: what it was the result of


def try_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Enqueues the values of a trial that died once more, up to a limit; False when the limit is reached."""
    if tries(trial) >= MAX_RETRIES:
        return False
    study.enqueue_trial(values_of(trial), user_attrs={**continued(trial), TRIES_KEY: tries(trial) + 1})
    return True


def try_lost_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """The same for a trial whose worker was lost, in a kill or by its heartbeats; what it had finished is not made again."""
    lost = int(trial.user_attrs.get(LOST_KEY, 0))
    if (values := values_of(trial)) and lost < MAX_LOST:
        study.enqueue_trial(values, user_attrs={**continued(trial), LOST_KEY: lost + 1})


def hand_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """The same for a trial that its worker was told to leave: that counts as no try."""
    if values := values_of(trial):
        study.enqueue_trial(values, user_attrs=continued(trial))


Enqueue = Callable[[optuna.Study, FrozenTrial], object]
_HOW: dict[str, Enqueue] = {"try again": try_again, "hand back": hand_back}


def note_again(trial: optuna.Trial, how: Enqueue) -> None:
    """Before the trial fails: who is killed between that and `how` leaves word of it, for `enqueue_forgotten`."""
    trial.set_user_attr(AGAIN_KEY, next(name for name, known in _HOW.items() if known is how))


def enqueue_forgotten(study: optuna.Study) -> None:
    """Enqueues the failed trials whose worker was killed after it had stored that, and before it had enqueued them again.

    Where another process does so in this very moment, one of the two is given back by who asks for it.
    """
    trials = study.get_trials(deepcopy=False)
    enqueued = {trial.user_attrs.get(RETRY_KEY) for trial in trials}
    for trial in trials:
        if trial.state != TrialState.FAIL or trial.number in enqueued:
            continue
        if (how := trial.user_attrs.get(AGAIN_KEY)) is not None:
            _HOW[how](study, trial)
        elif FAILURE_KEY not in trial.user_attrs:
            try_lost_again(study, trial)


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """What it was enqueued with, and what was drawn for it: a worker may be lost before all values of its trial are stored."""
    return {**trial.system_attrs.get(_ENQUEUED, {}), **trial.params}


def continued(trial: FrozenTrial) -> dict[str, Any]:
    """What ties a trial to the one that it goes on from: its number, and the directory with the checkpoint of its fit."""
    kept = (DIRECTORY_KEY, TRIES_KEY, LOST_KEY)
    return {**{key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}, RETRY_KEY: trial.number}


def tries(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(TRIES_KEY, 0))


@contextmanager
def unshared(known: Path | None, own: Path) -> Iterator[Path]:
    """Where a trial runs, locked meanwhile: where an earlier try of it ran, else in its own place.

    Also in its own where the earlier try still runs, in a worker of this disk that was given up too soon.
    """
    with ExitStack() as stack:
        if known is not None and known.is_dir() and _locked(stack, known):
            yield known
            return
        own.mkdir(parents=True, exist_ok=True)
        _locked(stack, own)
        yield own


def _locked(stack: ExitStack, directory: Path) -> bool:
    """False where another process holds it. A file system without locks has one worker a directory, as far as it can tell."""
    lock = stack.enter_context((directory / _LOCK).open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


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
