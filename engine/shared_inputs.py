"""Which linear layers read the same tensor (query, key and value; gate and up), seen in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn


class SeenInputs:
    """What each linear layer read first. The tensors are held while it looks, so that no two of them are taken for one."""

    def __init__(self) -> None:
        self._read: dict[str, Tensor] = {}

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Module paths that read one tensor, in the order of their calls."""
        found: dict[int, list[str]] = {}
        for path, read in self._read.items():
            found.setdefault(id(read), []).append(path)
        return tuple(map(tuple, found.values()))

    def see(self, path: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._read.setdefault(path, inputs[0])


@contextmanager
def seen_inputs(linears: Mapping[str, nn.Linear]) -> Iterator[SeenInputs]:
    """Inside, a forward shows its inputs."""
    seen = SeenInputs()
    hooks = [module.register_forward_pre_hook(partial(seen.see, path)) for path, module in linears.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
