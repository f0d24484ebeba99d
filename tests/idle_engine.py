"""An engine that does nothing: what a test needs of one is written over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from engine.engine import Completion, Continuation, Delta, Engine, EngineStats, GenerationRequest
from engine.profile import Profile


class IdleEngine:
    def load(self, name: str, profile: Profile) -> None:
        raise NotImplementedError

    def refresh(self, name: str) -> None:
        raise NotImplementedError

    def unload(self, name: str) -> None:
        raise NotImplementedError

    def profile(self, name: str) -> Profile:
        raise NotImplementedError

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        raise NotImplementedError

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Nothing is asked of it."""
        assert not requests
        return []

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        raise NotImplementedError

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset()

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None:
        """It holds nothing."""


if TYPE_CHECKING:
    _: Engine = IdleEngine()
