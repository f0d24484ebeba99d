"""Arms of a benchmark in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeAlias

import torch

from adapters.backbone import Backbone
from engine.own_thread import in_own_thread

# By the round's number: one round's work, and the seconds that it took.
Work: TypeAlias = Callable[[int], None]
Arm: TypeAlias = Callable[[int], tuple[float, float]]
Make: TypeAlias = Callable[[Backbone], dict[str, Work]]


class Apart:
    """Arms in a process of their own, which are timed there: an engine has the cores as a service has them.

    Of several that computed in one process each would have OpenMP workers of its own; see engine.own_thread.
    """

    def __init__(self, make: Make, backbone: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, backbone, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.names: list[str] = self._pipe.recv()

    @classmethod
    @contextmanager
    def all_of(cls, makes: Sequence[Make], backbone: str, threads: int) -> Iterator[dict[str, Arm]]:
        made: list[Apart] = []
        try:
            for make in makes:
                made.append(cls(make, backbone, threads))
            yield {name: partial(apart.run, name) for apart in made for name in apart.names}
        finally:
            for apart in made:
                apart._process.terminate()
                apart._process.join()

    def run(self, name: str, number: int) -> tuple[float, float]:
        """Seconds by the clock and of the processor; EOFError where the process has ended."""
        self._pipe.send((name, number))
        found: tuple[float, float] = self._pipe.recv()
        return found


def _work(pipe: Connection, make: Make, backbone: str, threads: int) -> None:
    torch.set_num_threads(threads)
    works = in_own_thread(lambda: make(Backbone.load(backbone)))  # as the service starts
    pipe.send(list(works))
    with suppress(EOFError):
        while True:
            name, number = pipe.recv()
            wall, cpu = time.perf_counter(), time.process_time()
            works[name](number)
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu))
