"""Only the best adapters of a study stay on disk: what can no longer be chosen is removed after each trial.

Kept are the first `study.keep_adapters` in the order in which candidates are gated (as many as the gate takes, at least), the
recipe's own values, which others are compared with, what was fitted again (`graftline sweep refit`), and while the study goes on
every trial that a later one could still make the best: the order hangs on the largest gain. Scores stay in the study and in
trials.json. Each worker removes what lies on its own disk; of several that share one, any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence

import optuna

from adapters.whole_file import is_part
from tuning.candidates import REFITTED, Candidate, candidates_of, in_order, removed_key
from tuning.recipe import Recipe


def remove_unneeded(study: optuna.Study, recipe: Recipe, over: bool = False) -> list[int]:
    """The trials whose weights were removed now. `over`: no trial is to come, so that the first ones alone stay.

    What is being read is left to the next call.
    """
    found = candidates_of(study)
    keep, told = needed(found, max(recipe.study.keep_adapters, recipe.gate.candidates), over), study.user_attrs
    keep |= {candidate.trial for candidate in found if told.get(removed_key(candidate.trial)) == REFITTED}
    return [
        candidate.trial
        for candidate in found
        if candidate.trial not in keep and candidate.directory.is_dir() and _removed(study, candidate)
    ]


def needed(candidates: Sequence[Candidate], keep: int, over: bool = False) -> set[int]:
    """The trials whose weights stay."""
    first = in_order(list(candidates))[:keep]
    kept = [*first, *(candidate for candidate in candidates if candidate.score.get("as_fitted"))]
    if not over:
        kept.extend(one for one in candidates if not any(_always_before(other, one) for other in candidates))
    return {candidate.trial for candidate in kept}


def _always_before(other: Candidate, one: Candidate) -> bool:
    """Whether `in_order` puts the other first, whatever gain a later trial has."""
    if other.feasible != one.feasible:
        return other.feasible
    value = (other.retention, other.domain_gain) > (one.retention, one.domain_gain)
    return value and (not one.feasible or other.reaches >= one.reaches)


def _removed(study: optuna.Study, candidate: Candidate) -> bool:
    """False where the files are being read, or another worker was first. A kill leaves them whole, or under another name."""
    directory = candidate.directory
    for left_behind in directory.parent.glob(f".{directory.name}.*"):
        if is_part(left_behind):
            shutil.rmtree(left_behind, ignore_errors=True)
    away = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        opened = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EBADF, errno.ENOTSUP, errno.EINVAL):
                raise
        study.set_user_attr(removed_key(candidate.trial), True)  # before: whoever finds nothing is told why
        try:
            directory.rename(away)
        except FileNotFoundError:
            return False
    finally:
        os.close(opened)
    shutil.rmtree(away, ignore_errors=True)
    return True
