"""The tasks that come with Graftline, by name."""

from evaluation.tasks.arithmetic import ARITHMETIC
from evaluation.tasks.boxes import BOXES
from evaluation.tasks.calendar import CALENDAR
from evaluation.tasks.deduction import DEDUCTION
from evaluation.tasks.generated import GeneratedTask
from evaluation.tasks.kinship import KINSHIP
from evaluation.tasks.ordering import ORDERING
from evaluation.tasks.word_problem import WORD_PROBLEM

FAMILIES: dict[str, GeneratedTask] = {
    task.name: task for task in (ARITHMETIC, WORD_PROBLEM, BOXES, DEDUCTION, ORDERING, CALENDAR, KINSHIP)
}
