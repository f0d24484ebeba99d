"""What every kind of task file is refused for, in the same words: a broken rule, and a built-in task's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from evaluation.errors import DataError


def broken_rule(path: str | Path, error: ValidationError, known: Iterable[str]) -> DataError:
    """What is wrong with the file: the first of the rules that it breaks, and the keys that may stand at that place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the file"
    said = first["msg"].removeprefix("Value error, ")
    return DataError(
        f"The task file {str(path)!r} breaks a rule at {place}: {said} (given: {first.get('input')!r}). "
        f"Known keys there: {', '.join(known)}."
    )


def refuse_built_in(path: str | Path, name: str) -> None:
    """DataError where the file's task is called as a built-in one is: their readings would be taken for each other's."""
    from evaluation.tasks import TASKS

    if name in TASKS:
        raise DataError(
            f"A task of your own has a name of its own, but {path} is called {name!r}, which is built in. Rename it, for "
            f'example to "my-{name}".'
        )
