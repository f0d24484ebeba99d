"""Looking inside: hidden states of rows of many profiles in one batch, for the engines that can show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from adapters.adapter import Prompt
from engine.bank import AdapterBank
from engine.engine import Continuation, Engine
from engine.errors import EngineError
from engine.slices import states_in_slices
from engine.twin import Twin

# Legend: B rows, T tokens, P asked places, L asked layers, H hidden

INSPECT = "inspect"
NOT_HERE = "this engine shows no hidden states (it lacks the `inspect` capability): measure it on the PyTorch engine"


class Inspector(Engine, Protocol):
    """An engine whose capabilities hold `inspect`."""

    def hidden_states(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[Tensor]:
        """What the layers put out, [L, P, H] in float32, for each continuation under its own profile (None: the backbone).

        Layer 0 is the lowest, and no layer's output has passed the final norm. The first place is the last token before
        `ids[scored_from]` (the prompt's last for 0), then come those of `ids[scored_from:]`; `ids` may be empty.
        """
        ...


def inspector(engine: Engine) -> Inspector | None:
    """The engine as one that looks inside; None where it cannot (`NOT_HERE` says it to the user)."""
    return cast(Inspector, engine) if INSPECT in engine.capabilities else None


@dataclass(frozen=True)
class Inspected:
    """One row: a continuation after its prompt as the profile has the backbone read it."""

    asked: Continuation
    prompt: Prompt
    name: str  # of the profile, or the bank's BASE

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.asked.ids)

    @property
    def first(self) -> int:
        """The first asked place."""
        return len(self.prompt.ids) + self.asked.scored_from - 1

    def embed(self, embeddings: nn.Embedding) -> Tensor:
        ids_T = torch.tensor(self.asked.ids, dtype=torch.long, device=embeddings.weight.device)
        return torch.cat((self.prompt.embed(embeddings), embeddings(ids_T)))


def refuse_unknown_layers(layers: Sequence[int], count: int) -> None:
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"Layers are counted from 0 to {count - 1} on this backbone, but got {list(layers)}. Ask for those.")


def routes_between_two(name: str) -> EngineError:
    return EngineError(
        f"What is looked into is one model, but {name!r} routes between two. Load its adapters alone under a name of their own."
    )


def inspect_batch(
    rows: Sequence[Inspected], layers: Sequence[int], twin: Twin, bank: AdapterBank, max_tokens: int
) -> Iterator[list[Tensor] | None]:
    """The asked states of each row, [L, P, H]; rows of several profiles share the forward. None after each slice before."""
    width, device = max(row.length for row in rows), twin.device
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    @contextmanager
    def computing() -> Iterator[None]:
        with twin.running(), bank.rows([row.name for row in rows]), kept_outputs(twin, layers) as found:
            yield
        for layer in kept:
            kept[layer].append(found[layer])

    with twin.running():
        embeds_BTH = pad_sequence([row.embed(twin.embeddings) for row in rows], batch_first=True)
        positions_BT = torch.arange(width, device=device).expand(len(rows), -1)
        # Padding stands at the end, where no token of the row looks.
        causal_11TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
    for low, states_BTH in states_in_slices(embeds_BTH, positions_BT, causal_11TT, twin, computing, max_tokens):
        if low + states_BTH.shape[1] < width:
            yield None
    whole = {layer: torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for layer, parts in kept.items()}
    yield [
        torch.stack([whole[layer][place, row.first : row.length].float().cpu() for layer in layers])
        for place, row in enumerate(rows)
    ]


@contextmanager
def kept_outputs(twin: Twin, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Inside, every forward leaves the outputs of the layers here. The bank's hooks, being older, have acted by then."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[layer] = output if isinstance(output, Tensor) else output[0]

    hooks = [twin.layers[layer].register_forward_hook(partial(keep, layer)) for layer in sorted(set(layers))]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
