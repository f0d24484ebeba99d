"""An engine under one more name: what is asked of it there runs on what a router chooses for each prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.adapter_router import AdapterRouter, Choice
from engine.engine import Completion, Continuation, Delta, Engine, EngineStats, GenerationRequest
from engine.inspect import INSPECT, Inspector
from engine.profile import Profile

# Legend: N prompts, L layers, T tokens, H hidden

_AT_ONCE = 64  # prompts whose states are held token by token


def prompt_states(engine: Inspector, prompts: Sequence[tuple[int, ...]], layer: int) -> list[Tensor]:
    """The mean over each prompt's tokens of what the backbone's layer puts out, [H] in float32."""
    return list(states_by_layer(engine, prompts, [layer])[layer])


def states_by_layer(
    engine: Inspector,
    prompts: Sequence[tuple[int, ...]],
    layers: Sequence[int],
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Tensor]:
    """`prompt_states` of several layers, [N, H] each, from one reading of the prompts; told as each part of them is done."""
    means_NLH = []
    for low in range(0, len(prompts), _AT_ONCE):
        # All tokens but the first are the continuation, so that all of their states are told.
        asked = [Continuation(ids[:1], ids[1:]) for ids in prompts[low : low + _AT_ONCE]]
        means_NLH += [states_LTH.mean(dim=1) for states_LTH in engine.hidden_states(asked, [None] * len(asked), layers)]
        on_progress(len(means_NLH))
    return {layer: torch.stack([means_LH[place] for means_LH in means_NLH]) for place, layer in enumerate(layers)}


class RoutedEngine:
    """Safe to use where the engine is. A prompt's choice is kept: its continuations and completions share it."""

    def __init__(self, engine: Inspector, router: AdapterRouter, targets: Mapping[str, str], name: str) -> None:
        """`targets` says under which profile each of the router's names is loaded; `name` is the one that is routed."""
        self._engine, self._router, self._targets, self._name = engine, router, dict(targets), name
        self._chosen: dict[tuple[int, ...], Choice] = {}

    def choices(self, prompts: Sequence[tuple[int, ...]]) -> list[Choice]:
        fresh = list(dict.fromkeys(ids for ids in prompts if ids not in self._chosen))
        if fresh:
            states = prompt_states(self._engine, fresh, self._router.layer)
            self._chosen.update(zip(fresh, map(self._router.choose, states), strict=True))
        return [self._chosen[ids] for ids in prompts]

    def _profiles(self, prompts: Sequence[tuple[int, ...]]) -> list[str | None]:
        return [None if choice.name is None else self._targets[choice.name] for choice in self.choices(prompts)]

    def load(self, name: str, profile: Profile) -> None:
        self._engine.load(name, profile)

    def refresh(self, name: str) -> None:
        self._engine.refresh(name)

    def unload(self, name: str) -> None:
        self._engine.unload(name)

    def profile(self, name: str) -> Profile:
        return Profile() if name == self._name else self._engine.profile(name)

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        return self._engine.generate(self._sent([request])[0])

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return self._engine.complete(self._sent(requests))

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        if profile != self._name:
            return self._engine.score(continuations, profile)
        profiles = self._profiles([one.prompt_ids for one in continuations])
        found: dict[int, tuple[float, ...]] = {}
        for target in dict.fromkeys(profiles):
            places = [place for place, chosen in enumerate(profiles) if chosen == target]
            found.update(zip(places, self._engine.score([continuations[place] for place in places], target), strict=True))
        return [found[place] for place in range(len(continuations))]

    @property
    def capabilities(self) -> frozenset[str]:
        return self._engine.capabilities - {INSPECT}

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()

    def _sent(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        ours = [place for place, request in enumerate(requests) if request.profile == self._name]
        profiles = dict(zip(ours, self._profiles([requests[place].prompt_ids for place in ours]), strict=True))
        return [replace(request, profile=profiles.get(place, request.profile)) for place, request in enumerate(requests)]


if TYPE_CHECKING:
    from typing import cast

    _: Engine = RoutedEngine(cast(Inspector, None), AdapterRouter((), 0, 0, 1, "", *[torch.empty(0)] * 4), {}, "")
