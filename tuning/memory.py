"""What runs out of memory: tried once more with half the micro-batch and the same global batch, then given up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from adapters.whole_file import write_whole
from tuning.isolation import ChildDied, run_isolated
from tuning.stop_probe import Ask
from tuning.trial import RESULT, Job, Outcome, Report

NOTE = "memory.json"  # in a trial's directory: what did not fit
MAX_TRIED = 2


class Isolated(Protocol):
    """As `run_isolated`."""

    def __call__(
        self,
        job: Job,
        report: Report,
        stall_timeout_s: float | None = None,
        ended: Callable[[], bool] = lambda: False,
        judge: Ask | None = None,
    ) -> Outcome: ...


def run_within_memory(
    job: Job,
    report: Report,
    stall_timeout_s: float | None = None,
    ended: Callable[[], bool] = lambda: False,
    judge: Ask | None = None,
    isolated: Isolated = run_isolated,
) -> Outcome:
    """The outcome of the job, which says the micro-batches that it was tried with; `failed` where the second did not fit either.

    A batch is split into more parts and their gradients are added up, so that the fit is the same. A child that was killed by
    SIGKILL, as the kernel does where memory is used up, may also have been killed by hand: ChildDied is raised as for any other,
    and what is next run in the same directory begins with half. ChildDied, too, for a child that died of anything else. A job
    that reads a given adapter fits nothing: it is tried again as it is, since others on the machine may have held the memory.
    """
    whole = job.recipe.method.micro_batch_tokens
    tried = _noted(job.directory, whole)
    while True:
        now = whole if not tried or job.given is not None else max(1, tried[-1] // 2)
        tried = (*tried, now)
        smaller = replace(job, recipe=job.recipe.with_values({"method.micro_batch_tokens": now})) if now != whole else job
        try:
            outcome = isolated(smaller, report, stall_timeout_s, ended, judge)
        except ChildDied as died:
            if not died.killed:
                raise
            if len(tried) < MAX_TRIED:
                _note(job.directory, tried)
                raise
            reason = "out of memory: its process was killed (SIGKILL), twice"
            outcome = Outcome(state="failed", reason=reason, out_of_memory=True)
        if outcome.out_of_memory and len(tried) < MAX_TRIED:
            _note(job.directory, tried)
            continue
        told: dict[str, object] = {"micro_batch_tokens": tried}
        if outcome.out_of_memory and job.given is not None:
            told["reason"] = f"{outcome.reason} Read twice. Run fewer workers on this machine, or take a smaller backbone."
        elif outcome.out_of_memory:
            ways = "Lower batch_size or the length of rows, set fit.gradient_checkpointing = true, or take a smaller backbone."
            told["reason"] = f"{outcome.reason} Tried with micro_batch_tokens {' and '.join(map(str, tried))}. {ways}"
        outcome = outcome.model_copy(update=told)
        write_whole(job.directory / RESULT, outcome.model_dump_json(indent=2))
        return outcome


def run_within_memory_here(
    job: Job,
    report: Report,
    stall_timeout_s: float | None = None,
    ended: Callable[[], bool] = lambda: False,
    isolated: Isolated = run_isolated,
) -> Outcome:
    """The same for a job that no worker tries again: a child that was killed is followed by the smaller one at once."""
    try:
        return run_within_memory(job, report, stall_timeout_s, ended, isolated=isolated)
    except ChildDied as died:
        if not died.killed:
            raise
    return run_within_memory(job, report, stall_timeout_s, ended, isolated=isolated)


def _noted(directory: Path, whole: int) -> tuple[int, ...]:
    """What an earlier try of the same trial left; nothing where its recipe had another micro-batch."""
    try:
        tried = tuple(json.loads((directory / NOTE).read_text())["micro_batch_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tried[: MAX_TRIED - 1] if tried[:1] == (whole,) else ()


def _note(directory: Path, tried: tuple[int, ...]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / NOTE, json.dumps({"micro_batch_tokens": tried}))
