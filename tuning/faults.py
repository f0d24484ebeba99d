"""What is wrong with a file of ours, in one sentence."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

# What TOML calls the things that pydantic has other names for.
_MEANT = {"tuple_type": "a list", "dict_type": "a table", "model_type": "a table", "model_attributes_type": "a table"}
_NAMED = 3  # of the other faults


def in_one_sentence(error: ValidationError, of: str = "recipe", model: type[BaseModel] | None = None) -> str:
    """The first fault of a pydantic error with its place, what was given and how many more there are.

    Beside a key that the `model` does not have stand those that it has.
    """
    # What is searched where a recipe does not say follows from its method and adapter: it has no fault of its own.
    faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")  # a misspelt key is also why another one is missing
    first = faults[0]
    place = _place(first["loc"], of)
    if first["type"] == "extra_forbidden":
        keys = _keys(model, first["loc"])
        known = f": known there are {', '.join(keys)}" if keys else ""
        text = f"{place!r} is not a key of a {of}. Remove it, or check its spelling{known}"
    elif first["type"] == "missing":
        text = f"{place!r} is missing. Add it"
    elif first["type"] in _MEANT:
        text = f"{place!r} is {_MEANT[first['type']]}, but got {first['input']!r}"
    else:
        # A rule over several values names its own; the whole table beside it would hide them.
        given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
        text = f"{place!r}: {first['msg'].removeprefix('Value error, ').rstrip('.')}{given}"
    others = list(dict.fromkeys(_place(fault["loc"], of) for fault in faults[1:]))
    named = ", ".join(map(repr, others[:_NAMED])) + (" and others" if len(others) > _NAMED else "")
    more = f" (and {len(faults) - 1} more: {named})" if len(faults) > 1 else ""
    return f"{text}{more}."


def _keys(model: type[BaseModel] | None, loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the table that the place's last part stands in; none where that is not known."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        model = field.annotation if field is not None and isinstance(field.annotation, type) else None
        if model is None or not issubclass(model, BaseModel):
            return []
    return list(model.model_fields) if model is not None else []


def _place(loc: tuple[int | str, ...], of: str) -> str:
    return ".".join(map(str, loc)) or of
