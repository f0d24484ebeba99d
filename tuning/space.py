"""From the marks in the specs to Optuna's suggestions: no line here for any adapter kind or method."""

from __future__ import annotations

import optuna

from adapters.spec import Choices, Range
from tuning.recipe import METHOD_NAME, Recipe, narrowed, search_marks

Value = str | int | float | bool


def is_active(field: str, kind: str, method: str) -> bool:
    """A field of an adapter kind plays a part only when that kind is fitted, one of a method only in a method that has it."""
    parts = field.split(".")
    if parts[0] == "adapter" and len(parts) > 2 and parts[1] not in kind.split("+"):
        return False
    if field == "adapter.orthogonal_weight" and "lora" not in kind.split("+"):
        return False
    return field in search_marks(method)


def suggest(trial: optuna.Trial, recipe: Recipe) -> dict[str, Value]:
    """Values of the searched fields for one trial; fields that play no part are not drawn."""
    values: dict[str, Value] = {}
    for field in sorted(recipe.search, key=_deciding_first):
        chosen = recipe.with_values(dict(values))
        if not is_active(field, chosen.adapter.kind, chosen.method.name):
            continue
        mark, default = narrowed(recipe, field, chosen.method.name), default_of(chosen, field)
        if isinstance(mark, Choices):
            drawn = trial.suggest_categorical(field, list(mark.options))
            assert drawn is not None
            values[field] = drawn
        elif isinstance(default, int):
            values[field] = trial.suggest_int(field, int(mark.low), int(mark.high), log=mark.log)
        else:
            values[field] = trial.suggest_float(field, mark.low, mark.high, log=mark.log)
    return values


def default_of(recipe: Recipe, field: str) -> Value:
    place: object = recipe
    for part in field.split("."):
        place = getattr(place, part)
    assert isinstance(place, (str, int, float, bool))
    return place


def defaults(recipe: Recipe) -> dict[str, Value]:
    """The recipe's own values of the searched fields, moved into their ranges: the first trial."""
    values = {}
    for field in recipe.search:
        if not is_active(field, recipe.adapter.kind, recipe.method.name):
            continue
        mark, value = narrowed(recipe, field, recipe.method.name), default_of(recipe, field)
        if isinstance(mark, Choices) and value not in mark.options:
            value = mark.options[0]
        if isinstance(mark, Range):
            value = type(value)(min(max(float(value), mark.low), mark.high))
        values[field] = value
    return values


def search_digest(recipe: Recipe) -> str:
    """Of what must not change between the trials of one study: everything but its length, its patience and its stop rules."""
    length = {"trials": 1, "time_budget_s": None, "min_trials": 0, "stall_timeout_s": 1.0, "stop": recipe.study.stop.comparable}
    return recipe.model_copy(update={"study": recipe.study.model_copy(update=length)}).digest()


def _deciding_first(field: str) -> int:
    """What other fields hang on is drawn before them."""
    return (METHOD_NAME, "adapter.kind", field).index(field)
