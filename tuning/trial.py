"""One trial, in a process of its own: fit, sweep the scale, measure, write `result.json`."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from adapters.whole_file import write_whole
from tuning.allocator import keep_freed_memory
from tuning.errors import FitStopped
from tuning.objective import Check, ScaleScore, TrialScore, constraints, in_order
from tuning.recipe import Recipe
from tuning.stop_probe import Ask, Probe, can_be_read

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from evaluation.evaluate import Planned
    from tuning.ground import Ground
    from tuning.methods.method import Fit

RESULT = "result.json"
ADAPTER = "adapter"  # what is published
KL_PROMPTS = 12  # of the training rows, as the domain asks them, to which the backbone writes what the distance to it is read on
MAX_CHECKS = 2  # scales that are written from, at most, before a trial is reported as it is

Report = Callable[[str, float], None]  # (load | admission | fit | measure | alive, share of it done)


class Outcome(BaseModel):
    """What a trial leaves behind.

    `failed` would repeat itself, `died` may pass, `refused` concerns every trial of the recipe; `stopped`: its judge ended it.
    """

    model_config = ConfigDict(frozen=True)

    state: Literal["complete", "stopped", "failed", "died", "refused"]
    reason: str = ""
    score: dict[str, Any] = {}
    fit: dict[str, Any] = {}
    data_digest: str = ""
    seconds: dict[str, float] = {}
    peak_memory_mib: float = 0.0
    curve: list[dict[str, Any]] = []  # what its judge was told of the fit; see tuning.stop_curve
    out_of_memory: bool = False  # may pass with a smaller micro-batch
    micro_batch_tokens: tuple[int, ...] = ()  # that it was tried with, the last being the one of this outcome
    not_measurable: dict[str, str] = {}  # protected families without a constraint, and why


@dataclass(frozen=True)
class Job:
    recipe: Recipe
    directory: Path
    cache: Path
    threads: int
    reference: bool = False  # also write from the adapter as it was fitted, whatever scale is chosen
    keep_as_fitted: bool = False  # what is left behind is at scale 1, whatever scale is chosen
    given: Path | None = None  # the directory of an adapter that is read in place of a fit
    keep_given: bool = False  # what was given is kept too, at the chosen scale


def run(job: Job, report: Report, judge: Ask | None = None) -> Outcome:
    """Runs the trial; a failure that the same settings would meet again becomes an outcome, one that may pass raises OSError.

    A judge is told what the recipe's stop rules look at, and may end the trial; without one, nothing is read for it.
    """
    import torch

    from tuning.ground import Ground

    torch.set_num_threads(job.threads)
    keep_freed_memory()
    job.directory.mkdir(parents=True, exist_ok=True)
    report("load", 0.0)
    started = time.monotonic()
    try:
        ground = Ground.of(job.recipe, job.cache, partial(report, "admission"))
    except OSError:
        raise
    except Exception as error:
        outcome = Outcome(state="refused", reason=in_words(error))
    else:
        outcome = _tried(job, ground, report, judge, time.monotonic() - started)
    write_whole(job.directory / RESULT, outcome.model_dump_json(indent=2))
    return outcome


def _tried(job: Job, ground: Ground, report: Report, judge: Ask | None, load_s: float) -> Outcome:
    from tuning.loop import CHECKPOINT

    started = time.monotonic()
    try:
        outcome = _fit_and_measure(job, ground, report, judge)
    except OSError:
        raise
    except FitStopped as stop:
        outcome = Outcome(state="stopped", reason=str(stop), seconds={"fit": time.monotonic() - started})
    except Exception as error:
        if is_out_of_memory(error):
            outcome = Outcome(state="failed", reason=f"out of memory: {str(error).strip()}", out_of_memory=True)
        else:
            outcome = Outcome(state="failed", reason=in_words(error))
    for checkpoint in job.directory.rglob(CHECKPOINT):  # whatever it ended by, it is not gone on with
        checkpoint.unlink()
    return outcome.model_copy(update={"not_measurable": ground.not_measurable, "seconds": {"load": load_s, **outcome.seconds}})


def is_out_of_memory(error: Exception) -> bool:
    """Of the device or of this machine: on a CPU torch has no class for it."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_words(error: Exception) -> str:
    """Ours say the rule and the way out; of another's error the place is worth more."""
    if type(error).__module__.partition(".")[0] in ("adapters", "engine", "evaluation", "registry", "tuning"):
        return f"{type(error).__name__}: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"


def _fit_and_measure(job: Job, ground: Ground, report: Report, judge: Ask | None) -> Outcome:
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine
    from evaluation.base_cache import BaseCache
    from evaluation.evaluate import evaluate
    from evaluation.task import reasoning_prompt
    from tuning.distance import distance, written_by_backbone
    from tuning.manifest import complete
    from tuning.plan import as_asked, data_digest, generated_plan, likelihood_plan, margins_of

    recipe, backbone, examples = job.recipe, ground.backbone, ground.examples
    started = time.monotonic()
    cache = BaseCache(job.cache / "base", recipe.evaluation.precision)
    new_engine = partial(TorchEngine, backbone, max_rows=64, precision=recipe.evaluation.precision)

    def alive(*_: Planned) -> None:
        report("alive", 0.0)

    probe = None
    if judge is not None and job.given is None and can_be_read(recipe):
        probe = Probe(recipe, ground, new_engine(), cache, job.directory, judge, alive)
    adapters, fit = _fitted(job, ground, report, probe)
    fitted, probe_s = time.monotonic(), probe.seconds if probe else 0.0
    engine = probe.engine if probe else new_engine()
    plan = likelihood_plan(recipe, ground.domain, without=ground.not_measurable)
    margins = margins_of(recipe, plan)
    profile, scores = Profile(adapters), list[ScaleScore]()

    def outcome_of(score: TrialScore) -> Outcome:
        return Outcome(
            state="complete",
            score=score.as_dict(),
            fit=fit.as_dict(),
            data_digest=data_digest(examples),
            seconds={"fit": fitted - started - probe_s, "probe": probe_s, "measure": time.monotonic() - fitted},
            peak_memory_mib=peak_memory_mib(),
        )

    if probe and (ended := probe.by_items(profile)):
        complete(job.directory / ADAPTER, recipe, backbone, profile, 1.0, examples)
        return outcome_of(ended)
    prompts = [reasoning_prompt(example) for example in as_asked(recipe, ground.domain)[:KL_PROMPTS]]
    own_words = written_by_backbone(engine, backbone, prompts)
    for index, scale in enumerate(recipe.study.scales):
        scaled = profile.scaled(scale)
        kl = distance(backbone, scaled.adapters, own_words)
        engine.load("candidate", scaled)
        read = evaluate(engine, backbone, "candidate", plan, cache, alive)
        changes = {family: row.change.mean for family, row in read.retention.items()}
        gain = read.domain.change
        stderr = 0.0 if math.isnan(gain.stderr) else gain.stderr
        scores.append(ScaleScore(scale, gain.mean, read.domain.adapted.mean, changes, stderr, kl))
        engine.unload("candidate")
        report("measure", (index + 1) / (len(recipe.study.scales) + 1))
    to_write = generated_plan(recipe, without=ground.not_measurable)

    def check(score: ScaleScore) -> Check:
        engine.load("candidate", profile.scaled(score.scale))
        read = evaluate(engine, backbone, "candidate", to_write, cache, alive)
        engine.unload("candidate")
        written = {family: row.change.mean for family, row in read.retention.items()}
        num_written = {family: row.change.n for family, row in read.retention.items()}
        return Check(score, written, constraints(score, written, num_written, margins))

    checks = []
    for tried in in_order(scores, margins)[:MAX_CHECKS]:
        checks.append(check(tried))
        if checks[-1].feasible:
            break
    chosen = checks[-1]
    as_fitted = None
    if job.reference:
        full = max(scores, key=lambda score: score.scale)
        as_fitted = next((done for done in checks if done.scale == full), None) or check(full)
    report("measure", 1.0)
    if job.given is None or job.keep_given:
        scale = 1.0 if job.keep_as_fitted else chosen.scale.scale
        complete(job.directory / ADAPTER, recipe, backbone, profile.scaled(scale), scale, examples)
    score = TrialScore(
        chosen.scale,
        tuple(scores),
        chosen.written,
        chosen.scale.retention(margins),
        chosen.constraints,
        chosen.scale.forward_kl,
        as_fitted,
    )
    return outcome_of(score)


def _fitted(job: Job, ground: Ground, report: Report, probe: Probe | None) -> tuple[tuple[Adapter, ...], Fit]:
    from engine.profile import Profile
    from tuning.ground import new_adapters
    from tuning.laid_out import launched_once
    from tuning.methods import METHODS
    from tuning.methods.method import Fit

    if job.given is not None:
        return Profile.load(job.given).adapters, Fit({}, 0, 0.0)
    if job.recipe.fit.is_launched:
        fitted = launched_once(job.recipe, job.directory, job.threads, lambda step, steps, loss: report("fit", step / steps))
        return fitted.adapters, fitted.fit
    recipe, adapters = job.recipe, new_adapters(job.recipe, ground.backbone)
    if probe:
        probe.begin(adapters)

    def on_step(step: int, steps: int, loss: float) -> None:
        report("fit", step / steps)
        if probe and step:
            probe.on_step(step, steps)

    fit = METHODS[recipe.method.name](recipe.method).fit(
        ground.backbone,
        adapters,
        ground.examples,
        on_step,
        task=ground.domain,
        directory=job.directory,
    )
    return adapters, fit


def peak_memory_mib() -> float:
    """The largest resident set of this process so far."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 if os.uname().sysname == "Linux" else kib / 1024**2
