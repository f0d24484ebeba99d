"""Who computes, and on how many threads.

OpenMP keeps a team of workers for every thread that ever computed on several. Where all teams together have more threads than
there are cores, GNU's library puts waiting workers to sleep that would else spin, and every product of a step waits for its
workers to wake: on two cores a step of 16 rows then takes nearly twice as long. So what is computed once is computed in a thread
that ends, and its team with it. The thread that steps then has the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def compute_on(num_threads: int) -> None:
    """From now on this thread computes on so many, whatever others set: one that never asked takes over what is set last."""
    torch.set_num_threads(num_threads)
    torch.get_num_threads()


def in_own_thread(work: Callable[[], T]) -> T:
    """Blocks; what the work returns or raises."""
    with ThreadPoolExecutor(1, "graftline-once") as pool:
        return pool.submit(work).result()
