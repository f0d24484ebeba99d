"""A TOML file that names a reasoning-gym dataset and its options."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evaluation.errors import DataError
from evaluation.tasks.gym import GymTask, load_gym
from evaluation.tasks.task_file import broken_rule, refuse_built_in

_OURS = ("seed", "size")


class GymSpec(BaseModel):
    """What such a file says. The options are the dataset's own, by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    gym: str
    options: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}


def gym_file(path: str | Path) -> GymTask | None:
    """The task of a file that has the key `gym`; None for any other file. Raises `DataError`."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None  # whoever reads it as another kind of task says what is wrong
    if "gym" not in values:
        return None
    try:
        spec = GymSpec.model_validate(values)
    except ValidationError as error:
        raise broken_rule(path, error, GymSpec.model_fields) from error
    refuse_built_in(path, spec.name)
    if taken := [key for key in _OURS if key in spec.options]:
        raise DataError(f"Seed and size of a dataset are set by split and count, but {str(path)!r} sets {taken[0]!r}. Remove it.")
    options = ((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(spec.options.items()))
    return load_gym(spec.gym, tuple(options), spec.name)
