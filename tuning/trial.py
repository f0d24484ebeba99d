"""One trial, in a process of its own: fit, sweep the scale, measure, write `result.json`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tuning.allocator import keep_freed_memory
from tuning.objective import ScaleScore, TrialScore, constraints, in_order
from tuning.recipe import Recipe

RESULT = "result.json"
ADAPTER = "adapter"
MAX_CHECKS = 2  # scales that are written from, at most, before a trial is reported as it is

Report = Callable[[str, float], None]  # (phase, share of it done)


class Outcome(BaseModel):
    """What a trial leaves behind, whether it finished or failed in a way that would repeat itself."""

    model_config = ConfigDict(frozen=True)

    state: Literal["complete", "failed"]
    reason: str = ""
    score: dict[str, Any] = {}
    fit: dict[str, Any] = {}
    data_digest: str = ""
    seconds: dict[str, float] = {}
    peak_memory_mib: float = 0.0


@dataclass(frozen=True)
class Job:
    recipe: Recipe
    directory: Path
    cache: Path
    threads: int


def run(job: Job, report: Report) -> Outcome:
    """Runs the trial; a failure that the same settings would meet again becomes an outcome, anything else raises."""
    import torch

    torch.set_num_threads(job.threads)
    keep_freed_memory()
    from adapters.errors import AdapterError
    from evaluation.errors import DataError
    from tuning.errors import Diverged

    job.directory.mkdir(parents=True, exist_ok=True)
    try:
        outcome = _fit_and_measure(job, report)
    except (Diverged, AdapterError, DataError) as error:
        outcome = Outcome(state="failed", reason=f"{type(error).__name__}: {error}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        outcome = Outcome(state="failed", reason=f"out of memory: {error}. Lower batch_size or micro_batch_tokens.")
    part = job.directory / (RESULT + ".part")
    part.write_text(outcome.model_dump_json(indent=2))
    part.replace(job.directory / RESULT)
    return outcome


def _fit_and_measure(job: Job, report: Report) -> Outcome:
    from adapters.backbone import Backbone
    from adapters.files import new_adapter
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.base_cache import BaseCache
    from evaluation.evaluate import evaluate, forward_kl
    from evaluation.statistics import score as score_of
    from evaluation.tasks import task_named
    from tuning.manifest import complete
    from tuning.methods import METHODS
    from tuning.plan import data_digest, generated_plan, likelihood_plan, margins_of, training_examples

    recipe, started = job.recipe, time.monotonic()
    backbone = Backbone.load(recipe.backbone)
    domain = task_named(recipe.domain)
    examples = training_examples(recipe, domain)
    specs = [getattr(recipe.adapter, kind) for kind in recipe.adapter.kind.split("+")]
    adapters = tuple(new_adapter(spec) for spec in specs)
    loaded = time.monotonic()
    fit = METHODS[recipe.method.name](recipe.method).fit(
        backbone, adapters, examples, lambda step, steps, loss: report("fit", step / steps)
    )
    fitted = time.monotonic()
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    cache = BaseCache(job.cache, recipe.evaluation.precision)
    plan = likelihood_plan(recipe, domain)
    margins = margins_of(recipe, plan)
    profile, scores = Profile(adapters), []
    for index, scale in enumerate(recipe.study.scales):
        engine.load("candidate", profile.scaled(scale))
        read = evaluate(engine, backbone, "candidate", plan, cache)
        changes = {family: row.change.mean for family, row in read.retention.items()}
        gain = score_of(read.domain.change.per_item)
        scores.append(ScaleScore(scale, gain.mean, read.domain.adapted.mean, changes, gain.stderr))
        engine.unload("candidate")
        report("measure", (index + 1) / (len(recipe.study.scales) + 1))
    to_write = generated_plan(recipe)
    for chosen in in_order(scores, margins)[:MAX_CHECKS]:
        scaled = profile.scaled(chosen.scale)
        engine.load("candidate", scaled)
        read = evaluate(engine, backbone, "candidate", to_write, cache)
        written = {family: row.change.mean for family, row in read.retention.items()}
        found = constraints(chosen, written, {family: row.change.n for family, row in read.retention.items()}, margins)
        if all(value <= 0 for value in found.values()):
            break
        engine.unload("candidate")
    else:
        engine.load("candidate", scaled)
    kl = forward_kl(engine, backbone, "candidate", examples[:8], max_new_tokens=32)
    report("measure", 1.0)
    complete(job.directory / ADAPTER, recipe, backbone, scaled, chosen.scale, examples)
    score = TrialScore(chosen, tuple(scores), written, chosen.retention(margins), found, kl)
    return Outcome(
        state="complete",
        score=score.as_dict(),
        fit={"losses": fit.losses, "kl": fit.kl, "num_tokens": fit.num_tokens, "tokens_per_s": fit.tokens_per_s},
        data_digest=data_digest(examples),
        seconds={"load": loaded - started, "fit": fitted - loaded, "measure": time.monotonic() - fitted},
        peak_memory_mib=peak_memory_mib(),
    )


def peak_memory_mib() -> float:
    """The largest resident set of this process so far."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 if os.uname().sysname == "Linux" else kib / 1024**2


def read_outcome(directory: Path) -> Outcome | None:
    """None while (or if) the trial left no result."""
    file = directory / RESULT
    return Outcome(**json.loads(file.read_text())) if file.is_file() else None
