"""What a recipe's data must be before anything is fitted: apart from what is measured, with choices, with rationales."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adapters.backbone import Backbone
from adapters.spec import Choices
from evaluation.errors import DataError
from evaluation.measures.choice import options_of
from evaluation.overlap import Fingerprints, check_overlap
from evaluation.task import Example, Split, Task
from evaluation.tasks import DOMAINS, TASKS, task_named
from evaluation.tasks.generated import GeneratedTask
from tuning.errors import SweepRefused
from tuning.methods import METHODS
from tuning.methods.method import MethodSpec
from tuning.recipe import METHOD_NAME, Recipe, narrowed

_MEASURED: tuple[Split, ...] = ("search", "select")
_LENGTHENING = ("target", "max_new_tokens", "steps", "batch_size")  # fields of methods; their choices begin with the least
_TARGET = "method.target"
_LOOKED_AT = 2000  # items of a split, at most: more than a trial reads, and seconds at the worst


def check_usable(recipe: Recipe, domain: Task, examples: Sequence[Example]) -> None:
    """Raises SweepRefused for what trials of the recipe would meet. A searched method is left to its own trials."""
    names = [task_named(task).name for task in recipe.protected]
    if twice := sorted({name for name in names if [*names, domain.name].count(name) > 1}):
        raise SweepRefused(
            f"A recipe's tasks have names of their own, since results are kept by them, but {', '.join(map(repr, twice))} comes "
            "twice among domain and protected. Rename one of them in its TOML file."
        )
    given = {*recipe.evaluation.margins, *recipe.gate.margins}
    if unknown := sorted(given - set(names)):
        raise SweepRefused(
            f"Margins are given by the names of protected tasks, but {', '.join(map(repr, unknown))} is none. Protected: "
            f"{', '.join(names)}."
        )
    if not examples:
        raise SweepRefused(
            f"A recipe fits its domain's training rows, but {domain.name!r} has none: its task file says held_out. Take that "
            "out, or protect the task and fit another."
        )
    if recipe.domain not in DOMAINS:  # tests see to the choices of these
        _check_choices(recipe, domain)
    _check_apart(recipe, examples)
    if METHOD_NAME not in recipe.search:
        _check_targets(recipe, domain, examples)


def _check_targets(recipe: Recipe, domain: Task, examples: Sequence[Example]) -> None:
    """Every target that a trial may draw can be learnt from the rows: those that cannot would take trials from the others."""
    if _TARGET not in recipe.search:
        targets: tuple[object, ...] = (getattr(recipe.method, "target", None),)
    else:
        mark = narrowed(recipe, _TARGET, recipe.method.name)
        assert isinstance(mark, Choices)
        targets = mark.options
    faults: dict[object, DataError] = {}
    for target in targets:
        method = recipe.method if target is None else recipe.method.model_copy(update={"target": target})
        try:
            METHODS[method.name](method).check(examples, domain)
        except DataError as error:
            faults[target] = error
    if not faults:
        return
    fault = next(iter(faults.values()))
    if left := [str(target) for target in targets if target not in faults]:
        raise SweepRefused(
            f"{fault} The search may draw {' or '.join(repr(str(target)) for target in faults)}, and such a trial would fit "
            f"nothing. For the rows as they are: [ranges] {_TARGET!r} = {json.dumps(left)}, and no [[start]] that names another."
        ) from fault
    raise SweepRefused(str(fault)) from fault


def check_lengths(recipe: Recipe, backbone: Backbone, examples: Sequence[Example]) -> None:
    """Raises SweepRefused for an example that leaves no room in any trial. A searched method is left to its own trials."""
    if METHOD_NAME in recipe.search:
        return
    try:
        METHODS[recipe.method.name](_shortest(recipe)).check_room(backbone, examples)
    except DataError as error:
        raise SweepRefused(str(error)) from error


def _shortest(recipe: Recipe) -> MethodSpec:
    """The method's values, with the least that is searched of what makes rows longer or more of them be read."""
    least: dict[str, object] = {}
    for name in _LENGTHENING:
        if (field := f"method.{name}") in recipe.search:
            mark = narrowed(recipe, field, recipe.method.name)
            least[name] = mark.options[0] if isinstance(mark, Choices) else int(mark.low)
    return recipe.method.model_copy(update=least)


def _check_choices(recipe: Recipe, domain: Task) -> None:
    try:
        for split in _MEASURED:
            for example in domain.examples(split, recipe.evaluation.domain_items):
                options_of(domain, example)
    except DataError as error:
        raise SweepRefused(f"A sweep scores its domain by choices, but {domain.name!r} cannot be scored so. {error}") from error


def _check_apart(recipe: Recipe, examples: Sequence[Example]) -> None:
    """No training row among what is measured. A built-in domain keeps its own splits apart, and drawn problems are in no data."""
    named = (*([] if recipe.domain in TASKS else [recipe.domain]), *recipe.protected)
    measured = [task for task in map(task_named, named) if not isinstance(task, GeneratedTask)]
    fingerprints = Fingerprints.of(examples if measured else ())
    for task in measured:
        held_out = [example for split in _MEASURED for example in task.examples(split, _LOOKED_AT)]
        if fingerprints.repeats(held_out):
            try:
                check_overlap(examples, held_out)
            except DataError as error:
                raise SweepRefused(f"A sweep measures {task.name!r} on rows that it does not train on. {error}") from error
