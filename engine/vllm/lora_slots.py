"""The LoRA updates that vLLM holds: each under a number and a name of its own, given to vLLM before anything is asked of it."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.adapter import Contribution
from adapters.errors import RefusedAdapter
from engine.vllm.files import AdapterFiles, write_adapter


@dataclass(frozen=True)
class Held:
    """`name` ends with the digest: vLLM keys what it has read of prompts by it. `number` is never given twice."""

    name: str
    number: int
    files: AdapterFiles


class LoRASlots:
    """`add` and `remove` are vLLM's own, of its name, number and path, and of its number."""

    def __init__(self, add: Callable[[str, int, str], Awaitable[object]], remove: Callable[[int], Awaitable[object]]) -> None:
        self._add, self._remove = add, remove
        self._numbers = itertools.count(1)
        self._home = Path(tempfile.mkdtemp(prefix="graftline-vllm-"))
        self._held: dict[str, list[Held]] = {}  # by digest: equal updates lie in one directory

    async def hold(self, name: str, contribution: Contribution) -> Held:
        """RefusedAdapter where vLLM will not have it; nothing of it is kept then."""
        files = await asyncio.to_thread(write_adapter, contribution, self._home)  # megabytes: rows that write go on meanwhile
        held = Held(f"{name}#{files.digest}", next(self._numbers), files)
        try:
            # Never with the first request: what vLLM refuses there ends it.
            await self._add(held.name, held.number, str(files.directory))
        except Exception as error:
            self._forget_unused(files)
            raise RefusedAdapter(f"vLLM refused {name!r}: {reason(error)} Serve it with the PyTorch engine.") from error
        self._held.setdefault(files.digest, []).append(held)
        return held

    async def let_go(self, held: Held) -> None:
        await self._remove(held.number)
        self._held[held.files.digest].remove(held)
        self._forget_unused(held.files)

    def close(self) -> None:
        shutil.rmtree(self._home, ignore_errors=True)

    def _forget_unused(self, files: AdapterFiles) -> None:
        if not self._held.get(files.digest):
            self._held.pop(files.digest, None)
            shutil.rmtree(files.directory, ignore_errors=True)


def reason(error: Exception) -> str:
    """The last line of what vLLM says, which may be a whole traceback, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines or [type(error).__name__])[-1].rstrip('.')}."
