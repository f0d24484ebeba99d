"""What a study's workers are asked to do, and what it was extended to: attributes of the study, seen from every machine.

A worker reads them before it asks for a trial. A trial that runs is never cut short: it ends orderly, and its result counts.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from tuning.errors import NothingToExtend
from tuning.recipe import Recipe, StudyRecipe

Wish = Literal["run", "pause", "stop"]  # pause: workers wait for the next word; stop: they end, and the study is closed
# User attributes of a study; its length is what `graftline tune` said last.
WISH_KEY, EXTENDED_KEY, LENGTH_KEY = "asked", "extended", "trials"
_EXTENDED = ("trials", "time_budget_s", "max_cost")


def wish(study: optuna.Study) -> Wish:
    """What was asked last; to run, where nothing was."""
    found = study.user_attrs.get(WISH_KEY, "run")
    assert found in ("run", "pause", "stop")
    return found  # type: ignore[no-any-return]


def was_stopped(study: optuna.Study) -> bool:
    """No, where the study's database is away: what it would say matters less than workers that still run."""
    with suppress(SQLAlchemyError, StorageInternalError):
        return wish(study) == "stop"
    return False


def ask(study: optuna.Study, what: Wish) -> None:
    study.set_user_attr(WISH_KEY, what)


def limits(study: optuna.Study, recipe: Recipe) -> StudyRecipe:
    """The recipe's limits, or those that the study was extended to where they are larger."""
    told = study.user_attrs
    extended, own = (
        told.get(EXTENDED_KEY, {}),
        recipe.study.model_copy(update={"trials": int(told.get(LENGTH_KEY, recipe.study.trials))}),
    )
    larger = {name: _larger(getattr(own, name), value) for name, value in extended.items()}
    return own.model_copy(update=larger)


def extend(
    study: optuna.Study,
    recipe: Recipe,
    trials: int | None = None,
    time_budget_s: float | None = None,
    max_cost: float | None = None,
) -> StudyRecipe:
    """Raises the limits that are given, in all and not by so much: twice the same is once. Returns what now holds.

    NothingToExtend for one that is no larger than what holds already, and for one that the recipe does not have.
    """
    given = {name: value for name, value in zip(_EXTENDED, (trials, time_budget_s, max_cost), strict=True) if value is not None}
    holds = limits(study, recipe)
    if not given:
        raise NothingToExtend(
            "A study is extended by more trials, time or cost, but none was given. Name one with --trials, --time-budget-s or "
            "--max-cost."
        )
    for name, value in given.items():
        now = getattr(holds, name)
        if now is None:
            raise NothingToExtend(
                f"What is extended has a limit, but the study {study.study_name!r} has no {name}. Leave --{_option(name)} out."
            )
        if not value >= now:  # nan is neither
            raise NothingToExtend(
                f"A study is extended to more than it has, but its {name} is {now:g} and {value:g} was given. Give a larger one; "
                f"`graftline tune RECIPE --resume --{_option(name)} {value:g}` takes an extension back."
            )
    study.set_user_attr(EXTENDED_KEY, {**study.user_attrs.get(EXTENDED_KEY, {}), **given})
    return limits(study, recipe)


def take_back(study: optuna.Study, names: Collection[str]) -> None:
    """Ends the extension of these limits: what `graftline tune` said last holds again, however small."""
    extended = study.user_attrs.get(EXTENDED_KEY, {})
    if kept := set(extended) & set(names):
        study.set_user_attr(EXTENDED_KEY, {name: value for name, value in extended.items() if name not in kept})


def _larger(own: float | None, extended: float) -> float | None:
    """No limit stays none."""
    return None if own is None else max(own, extended)


def _option(name: str) -> str:
    return name.replace("_", "-")
