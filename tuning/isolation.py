"""Runs a trial in a child process, so that a crash, a leak or an out-of-memory kill ends the trial and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any

from tuning.errors import BadRecipe, Preempted
from tuning.stop_probe import Ask
from tuning.trial import Job, Outcome, Report, run

_CONTEXT = multiprocessing.get_context(
    "forkserver"
)  # the server has imported what a trial needs; a child starts in a fraction of a second
_PRELOADED = ("tuning.preload",)
_BUILT_IN = {"icd10": "tuning.preload_icd10"}  # domains whose reading takes seconds, by the beginning of their names
_GRACE_S = 10.0  # for a child that has sent its last message


class ChildDied(RuntimeError):
    """The child ended without an outcome: killed, out of memory, or an error that may pass. The trial is tried again.

    `killed`: by SIGKILL, which was not ours; the kernel sends it where memory is used up.
    """

    def __init__(self, message: str, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


def available_threads() -> int:
    """$GRAFTLINE_THREADS, else the cores that this process may run on."""
    given = os.environ.get("GRAFTLINE_THREADS")
    if given and not (given.isdecimal() and int(given)):
        raise BadRecipe(f"GRAFTLINE_THREADS is a whole number of at least 1, but is {given!r}. Correct or unset it.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given) if given else cores


def use_threads() -> None:
    """As many as a trial would: for a fit in this very process."""
    import torch

    torch.set_num_threads(available_threads())


def trials_context() -> ForkServerContext:
    """How the processes of trials are started."""
    return _CONTEXT


def prepare(domain: str = "") -> None:
    """Says what the server that children are forked from imports, and reads, once: call it before the first trial."""
    tables = [module for name, module in _BUILT_IN.items() if domain.startswith(name)]
    _CONTEXT.set_forkserver_preload([*_PRELOADED, *tables])
    # Of the trials alone, several of which may share the cores: a service that is started later is slower for it.
    is_ours = "OMP_WAIT_POLICY" not in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        forkserver.ensure_running()
    finally:
        if is_ours:
            del os.environ["OMP_WAIT_POLICY"]


def run_isolated(
    job: Job,
    report: Report,
    stall_timeout_s: float | None = None,
    ended: Callable[[], bool] = lambda: False,
    judge: Ask | None = None,
) -> Outcome:
    """The outcome of the job, run in a child. Raises ChildDied when the child leaves none, or says nothing for that long.

    Once `ended`, the child is stopped, and Preempted is raised: the checkpoint of its fit stays. The judge is called here, in the
    parent, with what the child asks it; the child waits for the answer.
    """
    receiver, sender = _CONTEXT.Pipe()
    child = _CONTEXT.Process(target=_child, args=(job, sender, judge is not None), daemon=True)
    child.start()
    sender.close()
    heard, said = time.monotonic(), ""
    try:
        while True:
            if ended():
                child.kill()
                raise Preempted("The worker was told to end in the middle of a trial, which is tried again from its checkpoint.")
            left = 1.0 if stall_timeout_s is None else min(1.0, heard + stall_timeout_s - time.monotonic())
            if left <= 0:
                child.kill()
                raise ChildDied(
                    f"The trial gave no sign of life for {stall_timeout_s:.0f} s and was stopped. "
                    "Raise study.stall_timeout_s if it was only slow."
                )
            if not receiver.poll(left):
                if not child.is_alive() and not receiver.poll(0):
                    break
                continue
            try:
                kind, value = receiver.recv()
            except EOFError:
                break
            if kind == "outcome":
                assert isinstance(value, Outcome)
                return value
            if kind == "error":
                said = str(value)
            elif kind == "asks":
                assert judge is not None
                receiver.send(judge(*value))
            else:
                report(kind, float(value))
            heard = time.monotonic()
    finally:
        receiver.close()  # a child that waits for an answer ends by that
        child.join(_GRACE_S)
        if child.is_alive():
            child.kill()
            child.join()
    if ended():  # who told this process may have told its child too
        raise Preempted("The worker was told to end in the middle of a trial, which is tried again from its checkpoint.")
    raise ChildDied(
        said or f"The trial's process ended with exit code {child.exitcode} and left no result.",
        child.exitcode == -signal.SIGKILL,
    )


def end_with_parent() -> None:
    """This process ends when the one that started it does, however that ends: a trial that nobody waits for holds gigabytes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def _child(job: Job, sender: Connection, judged: bool) -> None:
    end_with_parent()

    def ask(kind: str, told: Mapping[str, Any]) -> str | None:
        sender.send(("asks", (kind, told)))
        answer: str | None = sender.recv()
        return answer

    try:
        outcome = run(job, lambda phase, share: sender.send((phase, share)), ask if judged else None)
        sender.send(("outcome", outcome))
    except (BrokenPipeError, ConnectionResetError, EOFError):  # the parent is gone: nobody waits for this trial
        raise SystemExit(1) from None
    except BaseException:
        sender.send(("error", traceback.format_exc(limit=-6)))
        raise SystemExit(1) from None
    finally:
        sender.close()
