"""The tasks that come with Graftline, by name."""

from pathlib import Path

from evaluation.errors import UnknownTask
from evaluation.task import Task
from evaluation.tasks.alchemy import ALCHEMY
from evaluation.tasks.arithmetic import ARITHMETIC
from evaluation.tasks.belief import BELIEF
from evaluation.tasks.boxes import BOXES
from evaluation.tasks.calendar import CALENDAR
from evaluation.tasks.customs import CUSTOMS, CUSTOMS_HEADING, CUSTOMS_SECTION
from evaluation.tasks.deduction import DEDUCTION
from evaluation.tasks.generated import GeneratedTask
from evaluation.tasks.geography import GEOGRAPHY, GEOGRAPHY_CONTINENT, GEOGRAPHY_COUNTRY
from evaluation.tasks.grammar import GRAMMAR
from evaluation.tasks.graph_task import GRAPH_ICD10
from evaluation.tasks.gym import PREFIX, load_gym
from evaluation.tasks.gym_file import gym_file
from evaluation.tasks.icd10 import ICD10, ICD10_CATEGORY, ICD10_CHAPTER
from evaluation.tasks.kinship import KINSHIP
from evaluation.tasks.ordering import ORDERING
from evaluation.tasks.search import ARRANGEMENTS, MAZE, TALLY
from evaluation.tasks.text import TEXT
from evaluation.tasks.word_problem import WORD_PROBLEM

FAMILIES: dict[str, GeneratedTask] = {
    task.name: task for task in (ARITHMETIC, WORD_PROBLEM, BOXES, DEDUCTION, ORDERING, CALENDAR, KINSHIP)
}

SEARCHES: dict[str, GeneratedTask] = {task.name: task for task in (MAZE, ARRANGEMENTS, TALLY)}

DOMAINS: dict[str, Task] = {
    task.name: task
    for task in (
        *(ICD10, ICD10_CHAPTER, ICD10_CATEGORY),
        *(CUSTOMS, CUSTOMS_SECTION, CUSTOMS_HEADING),
        *(GEOGRAPHY, GEOGRAPHY_CONTINENT, GEOGRAPHY_COUNTRY),
    )
}

TASKS: dict[str, Task] = {
    **DOMAINS,
    **FAMILIES,
    **SEARCHES,
    ALCHEMY.name: ALCHEMY,
    GRAMMAR.name: GRAMMAR,
    TEXT.name: TEXT,
    GRAPH_ICD10.name: GRAPH_ICD10,
    BELIEF.name: BELIEF,
}


def task_named(name: str) -> Task:
    """A built-in task by its name, a dataset of reasoning-gym as `gym:NAME`, or a user's task by the path of its TOML file.

    What the file names decides what it is: rows, a dataset of reasoning-gym, or a knowledge graph.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith(PREFIX):
        return load_gym(name.removeprefix(PREFIX))
    if name.endswith(".toml") or Path(name).is_file():
        from evaluation.tasks.graph_file import graph_file
        from evaluation.tasks.user_data import load_task

        return gym_file(name) or graph_file(name) or load_task(name)
    raise UnknownTask(
        f"A task is a built-in name, gym:NAME or the path of a TOML file, but {name!r} is neither. Built in: {', '.join(TASKS)}."
    )
