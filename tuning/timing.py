"""Times one point of a search on the real backbone: three steps of the real fit, and slices of what a trial measures.

It runs in a process of its own, as a trial does, so that its memory is that of one trial, and writes to no home.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.errors import SweepRefused
from tuning.estimate import Timing
from tuning.isolation import end_with_parent, trials_context
from tuning.recipe import Recipe

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from engine.torch_engine import TorchEngine
    from evaluation.evaluate import Planned
    from tuning.ground import Ground

STEPS, SHARE, ROWS = (
    3,
    6,
    64,
)  # of the fit, the first apart; a slice is a sixth of what is scored, and so many rows that are written
_ADMISSION_READINGS = 4  # of each family, once for a backbone


def timed_apart(recipe: Recipe, cache: Path, threads: int, with_base: bool = True) -> Timing:
    """In a child. SweepRefused where the system ends it, as it does where memory does not suffice."""
    with ProcessPoolExecutor(max_workers=1, mp_context=trials_context(), initializer=end_with_parent) as pool:
        try:
            return pool.submit(timed, recipe, cache, threads, with_base).result()
        except BrokenProcessPool as error:
            raise SweepRefused(
                f"A trial must fit into this machine, but the process that tried {recipe.method.steps} steps of batches of "
                f"{recipe.method.batch_size} was ended by the system, most likely for its memory. Narrow [ranges], or lower "
                "method.batch_size or method.micro_batch_tokens."
            ) from error


def timed(recipe: Recipe, cache: Path, threads: int, with_base: bool = True) -> Timing:
    """`cache` is read, for what is known of the backbone, and not written to. With what the first trial alone reads, or not."""
    import torch

    from adapters.adapter import Stack
    from tuning.allocator import keep_freed_memory
    from tuning.trial import MAX_CHECKS, peak_memory_mib

    torch.set_num_threads(threads)
    keep_freed_memory()
    began = time.monotonic()
    ground, unknown = _ground(recipe, cache)
    load_s = time.monotonic() - began
    adapters, fit = _fitted(recipe, ground)
    parts = _measured(recipe, ground, adapters, cache, unknown if with_base else None)
    cuda = torch.cuda.is_available()
    stack = Stack(adapters)
    with stack.attach(ground.backbone):
        trained = sum(parameter.numel() for parameter in stack.parameters())
    scored, written, fixed_s, once_s, size = parts
    return replace(
        fit,
        before_s=fit.before_s + load_s,
        measure_s=(scored[0] + fixed_s + written, scored[1] + fixed_s + MAX_CHECKS * written),
        once_s=once_s,
        peak_memory_mib=peak_memory_mib(),
        gpu_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0,
        adapter_bytes=size,
        checkpoint_bytes=3 * 4 * trained,  # the weights and AdamW's two moments in float32
    )


def _ground(recipe: Recipe, cache: Path) -> tuple[Ground, int]:
    """As a trial's, but what is not known of the backbone is not read; the number of families that it would be read for."""
    from evaluation.admission import stored_admission
    from evaluation.tasks import task_named
    from tuning.continuing import check_start
    from tuning.ground import Ground, backbone_of
    from tuning.plan import training_examples
    from tuning.servable import check_servable
    from tuning.usable import check_lengths, check_usable

    backbone, domain = backbone_of(recipe), task_named(recipe.domain)
    examples = training_examples(recipe, domain)
    check_usable(recipe, domain, examples)
    check_lengths(recipe, backbone, examples)
    check_start(recipe, backbone)
    check_servable(recipe, backbone)
    left_out, unknown = dict[str, str](), 0
    for name in recipe.protected:
        known = stored_admission(backbone, task_named(name), cache, precision=recipe.evaluation.precision)
        unknown += known is None
        if known is not None and not known.admitted:
            left_out[name] = "; ".join(known.reasons)
    return Ground(backbone, domain, examples, left_out), unknown


def _fitted(recipe: Recipe, ground: Ground) -> tuple[tuple[Adapter, ...], Timing]:
    """Adapters after some steps, and the fit's part of the timing."""
    from tuning.distance import EVERY
    from tuning.ground import new_adapters
    from tuning.methods import METHODS

    short = recipe.with_values({"method.steps": STEPS})
    adapters, at = new_adapters(recipe, ground.backbone), dict[int, float]()

    def on_step(step: int, steps: int, loss: float) -> None:
        at.setdefault(step, time.monotonic())

    began = time.monotonic()
    method = METHODS[recipe.method.name](short.method)
    fit = method.fit(ground.backbone, adapters, ground.examples, on_step, task=ground.domain)
    took, ends = time.monotonic() - began, [at[step] for step in sorted(at) if step > 0]
    later = tuple(after - before for before, after in zip(ends, ends[1:], strict=False)) or (fit.seconds,)
    budget, tokens = recipe.method.token_budget, (fit.num_tokens + fit.num_generated) / max(1, len(ends))
    most = None if budget is None else max(1, math.ceil(budget / max(1.0, tokens)))
    steps = recipe.method.steps if most is None else min(most, recipe.method.steps)
    first = max(0.0, fit.seconds - sum(later)) if len(ends) > 1 else fit.seconds
    return adapters, Timing(steps, most, max(0.0, took - fit.seconds), first, later, EVERY, (), 0.0, 0.0, 0.0, 0, 0)


def _measured(
    recipe: Recipe, ground: Ground, adapters: tuple[Adapter, ...], cache: Path, unknown: int | None
) -> tuple[tuple[float, float], float, float, float, int]:
    """Seconds: of scoring all scales (by each of two slices), of writing once, of what else a trial does; of what the first
    trial reads of the backbone. And the bytes of the files of an adapter."""
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.task import reasoning_prompt
    from tuning.distance import distance, written_by_backbone
    from tuning.manifest import complete
    from tuning.plan import as_asked, generated_plan, likelihood_plan
    from tuning.trial import ADAPTER, KL_PROMPTS

    backbone, profile = ground.backbone, Profile(adapters)
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    scoring = likelihood_plan(recipe, ground.domain, without=ground.not_measurable)
    writing = generated_plan(recipe, without=ground.not_measurable)
    once = 0.0 if unknown is None else _once_s(recipe, engine, ground, cache, scoring, writing, unknown)
    engine.load("candidate", profile)
    scored = [_scoring_s(engine, ground, "candidate", scoring, number) for number in (0, 1)]
    written = _writing_s(engine, ground, "candidate", writing)
    engine.unload("candidate")
    scales, began = len(recipe.study.scales), time.monotonic()
    prompts = [reasoning_prompt(example) for example in as_asked(recipe, ground.domain)[:KL_PROMPTS]]
    own_words = written_by_backbone(engine, backbone, prompts)
    asked = time.monotonic()
    distance(backbone, adapters, own_words)
    read = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        complete(Path(place) / ADAPTER, recipe, backbone, profile, 1.0, ground.examples)
        size = sum(file.stat().st_size for file in (Path(place) / ADAPTER).rglob("*") if file.is_file())
    fixed = (asked - began) + scales * (read - asked) + (time.monotonic() - read)
    return (scales * scored[0], scales * scored[1]), written, fixed, once, size


def _once_s(
    recipe: Recipe,
    engine: TorchEngine,
    ground: Ground,
    cache: Path,
    scoring: Sequence[Planned],
    writing: Sequence[Planned],
    unknown: int,
) -> float:
    """Of reading the backbone itself, where that is not in the cache, and of admitting so many families."""
    from evaluation.admission import ITEMS
    from evaluation.base_cache import BaseCache

    known = BaseCache(cache / "base", recipe.evaluation.precision)
    plan = [*scoring, *writing]
    is_known = all(known.stored(p.measure, ground.backbone, p.task, p.examples) is not None for p in plan)
    if is_known and not unknown:
        return 0.0
    scored, written = _scoring_s(engine, ground, None, scoring, 0), _writing_s(engine, ground, None, writing)
    row_s = written / max(1, sum(len(p.examples) for p in writing))
    return (0.0 if is_known else scored + written) + unknown * _ADMISSION_READINGS * ITEMS * row_s


def _scoring_s(engine: TorchEngine, ground: Ground, profile: str | None, plan: Sequence[Planned], number: int) -> float:
    """Of the whole plan, by a slice of each of its parts: the first or the second one."""
    from evaluation.evaluate import read_plan

    total = 0.0
    for planned in plan:
        examples = planned.examples
        size = min(len(examples), max(4, math.ceil(len(examples) / SHARE)))
        start = min(number * size, len(examples) - size)
        began = time.monotonic()
        read_plan(engine, ground.backbone, profile, [replace(planned, examples=examples[start : start + size])])
        total += (time.monotonic() - began) * len(examples) / size
    return total


def _writing_s(engine: TorchEngine, ground: Ground, profile: str | None, plan: Sequence[Planned]) -> float:
    """Of the whole plan, by as many rows as the engine writes at once."""
    from evaluation.evaluate import read_plan

    if not plan:
        return 0.0
    each = max(1, ROWS // len(plan))
    slices = [replace(planned, examples=planned.examples[:each]) for planned in plan]
    began = time.monotonic()
    read_plan(engine, ground.backbone, profile, slices)
    rows, wanted = (sum(len(planned.examples) for planned in of) for of in (slices, plan))
    return (time.monotonic() - began) * wanted / rows
