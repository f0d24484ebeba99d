"""Given texts, read for an engine: what is likely in them, and what stands in the layers, a slice between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from adapters.adapter import Prompt
from engine.bank import BASE, AdapterBank
from engine.engine import Continuation
from engine.inspect import Inspected, inspect_batch, refuse_unknown_layers, routes_between_two
from engine.oracle import Router
from engine.routed_score import routed_score
from engine.score import lay_out, score_batch
from engine.slices import Run, in_steps
from engine.trie import batches
from engine.twin import Twin


@dataclass
class TextReader:
    """`prompt_of` refuses what is too long with so many tokens more; it and the forwards are called by `run`.

    `max_tokens` says what one forward may hold; inside `using` a name keeps its weights.
    """

    twin: Twin
    bank: AdapterBank
    run: Run
    max_tokens: Callable[[], int]
    using: Callable[..., AbstractContextManager[None]]
    prompt_of: Callable[[tuple[int, ...], str | None, int], Prompt]
    router_of: Callable[[str | None], Router | None]
    num_tokens: int = 0  # that went through a forward
    num_tokens_unshared: int = 0  # that would have without sharing

    def score(self, continuations: Sequence[Continuation], profile: str | None) -> list[tuple[float, ...]]:
        name, router = profile or BASE, self.router_of(profile)
        with self.using(name):
            if router is not None:
                return [self._routed(continuation, name, router) for continuation in continuations]
            limit, found = self.max_tokens(), dict[int, tuple[float, ...]]()
            work = self.run(lambda: lay_out(continuations, self._prompts(continuations, profile), limit))
            for batch in work.batches:
                found.update(in_steps(self.run, score_batch(work, batch, self.twin, self.bank, name, limit)))
        self._count(work.num_nodes, work.num_unshared)
        return [found[index] for index in range(len(continuations))]

    def hidden_states(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[Tensor]:
        limit, found = self.max_tokens(), dict[int, Tensor]()
        with self.using(*(profile or BASE for profile in profiles)):
            rows: list[Inspected] = self.run(lambda: self._inspected(continuations, profiles, layers))
            for batch in batches([row.length for row in rows], limit):
                names = [rows[index].name for index in batch]
                for group in self.run(partial(self.bank.groups, names)):
                    indices = [batch[place] for place in group]
                    slices = inspect_batch([rows[index] for index in indices], layers, self.twin, self.bank, limit)
                    found.update(zip(indices, in_steps(self.run, slices), strict=True))
        num_tokens = sum(row.length for row in rows)
        self._count(num_tokens, num_tokens)
        return [found[index] for index in range(len(rows))]

    def _routed(self, continuation: Continuation, name: str, router: Router) -> tuple[float, ...]:
        (prompt,) = self.run(lambda: self._prompts([continuation], name))
        found = self.run(lambda: routed_score(continuation, prompt, router, name, self.twin, self.bank))
        self._count(found.num_tokens, found.num_tokens)
        logprobs: tuple[float, ...] = found.logprobs
        return logprobs

    def _prompts(self, continuations: Sequence[Continuation], profile: str | None) -> list[Prompt]:
        """One object for equal prompts: their soft thoughts are then the same nodes."""
        longest: dict[tuple[int, ...], int] = {}
        for continuation in continuations:
            continuation.refuse_unscored()
            key = continuation.prompt_ids
            longest[key] = max(longest.get(key, 0), len(continuation.ids))
        prompts = {ids: self.prompt_of(ids, profile, num_more) for ids, num_more in longest.items()}
        return [prompts[continuation.prompt_ids] for continuation in continuations]

    def _inspected(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[Inspected]:
        refuse_unknown_layers(layers, self.twin.num_layers)
        for name in {profile for profile in profiles if profile is not None and self.router_of(profile)}:
            raise routes_between_two(name)
        return [
            Inspected(asked, self.prompt_of(asked.prompt_ids, profile, len(asked.ids)), profile or BASE)
            for asked, profile in zip(continuations, profiles, strict=True)
        ]

    def _count(self, num_tokens: int, num_unshared: int) -> None:
        self.num_tokens += num_tokens
        self.num_tokens_unshared += num_unshared
