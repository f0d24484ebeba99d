"""What every adapter kind offers: attach for fitting, a transformed prompt and a contribution for the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.hold import Hold
from adapters.spec import Spec

# Legend: K thoughts, H hidden, R rank, T tokens


@dataclass(frozen=True)
class Prompt:
    """What the backbone reads: token ids, and vectors that stand in the place of the ids from `soft_at` on.

    `chain` is which of an adapter's sets of soft thoughts it gets, or got.
    """

    ids: tuple[int, ...]
    soft_KH: Tensor | None = None
    soft_at: int = 0
    chain: int = 0

    def embed(self, embeddings: nn.Embedding) -> Tensor:
        """Input embeddings, [T, H]; gradients flow into the soft vectors."""
        ids_T = torch.tensor(self.ids, device=embeddings.weight.device)
        embeds_TH: Tensor = embeddings(ids_T)
        if self.soft_KH is None:
            return embeds_TH
        end = self.soft_at + self.soft_KH.shape[0]
        return torch.cat((embeds_TH[: self.soft_at], self.soft_KH.to(embeds_TH), embeds_TH[end:]))

    def part(self, low: int, high: int) -> Prompt:
        """What stands from one place to another."""
        first, end = self.soft_at, self.soft_at + (0 if self.soft_KH is None else len(self.soft_KH))
        first, end = max(low, first), min(high, end)
        if self.soft_KH is None or first >= end:
            return Prompt(self.ids[low:high], chain=self.chain)
        return Prompt(self.ids[low:high], self.soft_KH[first - self.soft_at : end - self.soft_at], first - low, self.chain)


@dataclass(frozen=True)
class LowRank:
    """One module's update: y += x @ a.T @ b.T + bias, with all scaling inside b and the bias."""

    a_RI: Tensor
    b_OR: Tensor
    bias_O: Tensor | None = None


@dataclass(frozen=True)
class Held:
    """A vector of which as much is added at each place as brings the hold's feature to its level; all scaling is inside."""

    vector_H: Tensor
    hold: Hold


@dataclass(frozen=True)
class Contribution:
    """What an engine needs to run an adapter for one row beside rows of other adapters."""

    low_rank: Mapping[str, LowRank] = field(default_factory=dict)  # by module path below the causal LM
    residual: Mapping[int, Tensor] = field(default_factory=dict)  # [H] by layer, added to what the layer puts out
    held: Mapping[int, Held] = field(default_factory=dict)  # by layer, after the residual vector

    @property
    def is_empty(self) -> bool:
        """Whether nothing acts in any layer."""
        return not (self.low_rank or self.residual or self.held)


@runtime_checkable
class Adapter(Protocol):
    """A kind of adapter. Attached, or run by contribution and transform, the logits are the same."""

    @property
    def spec(self) -> Spec: ...

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Inside, the backbone computes with the adapter and its parameters take gradients; leaving restores it bit for bit."""
        ...

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        """The prompt as the backbone reads it under this adapter (soft thoughts inserted, say)."""
        ...

    def contribution(self) -> Contribution: ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What a fit trains; only while attached."""
        ...

    def scaled(self, factor: float) -> Adapter:
        """The same adapter with its effect multiplied; the original is not changed."""
        ...

    def scaled_by_layer(self, factors: Sequence[float]) -> Adapter:
        """The same adapter with its effect in layer i multiplied by `factors[i]`; what acts in no layer stays as it is."""
        ...

    def save(self, directory: Path) -> None:
        """Writes config and weights into the directory, which must exist."""
        ...


@runtime_checkable
class Penalised(Protocol):
    """An adapter that may add to the loss of whatever method fits it."""

    def penalty(self) -> Tensor | None:
        """With a gradient, while attached; None where nothing was asked for."""
        ...


class Stack:
    """Several adapters as one: attached together, prompts transformed in order."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)

    @contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        with ExitStack() as stack:
            for adapter in self.adapters:
                stack.enter_context(adapter.attach(backbone))
            yield

    def transform(self, backbone: Backbone, prompt: Prompt) -> Prompt:
        for adapter in self.adapters:
            prompt = adapter.transform(backbone, prompt)
        return prompt

    def contribution(self) -> Contribution:
        merged: dict[str, LowRank] = {}
        residual: dict[int, Tensor] = {}
        held: dict[int, Held] = {}
        for adapter in self.adapters:
            part = adapter.contribution()
            for path, update in part.low_rank.items():
                merged[path] = update if path not in merged else _joined(merged[path], update)
            for layer, vector_H in part.residual.items():
                residual[layer] = vector_H if layer not in residual else residual[layer] + vector_H
            if both := sorted(held.keys() & part.held.keys()):
                raise RefusedAdapter(
                    f"One feature is held after a layer, but two adapters hold one after layer {both[0]}. Leave one of them out."
                )
            held |= part.held
        return Contribution(merged, residual, held)

    def parameters(self) -> Iterator[nn.Parameter]:
        for adapter in self.adapters:
            yield from adapter.parameters()

    def penalty(self) -> Tensor | None:
        """The sum of the adapters' own; None where none has any."""
        parts = [part for one in self.adapters if isinstance(one, Penalised) and (part := one.penalty()) is not None]
        return torch.stack(parts).sum() if parts else None


def _joined(one: LowRank, two: LowRank) -> LowRank:
    """The sum of two low-rank updates, as one of the summed rank."""
    biases = [bias_O for bias_O in (one.bias_O, two.bias_O) if bias_O is not None]
    summed_O = torch.stack(biases).sum(dim=0) if biases else None
    return LowRank(torch.cat((one.a_RI, two.a_RI)), torch.cat((one.b_OR, two.b_OR), dim=1), summed_O)
