"""A twin of the backbone's model: its own modules over the same weights, so that nothing attached to one shows in the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from adapters.backbone import Backbone, fast_bfloat16
from adapters.low_weight import LowWeight
from adapters.residual import ResidualShift
from engine.errors import EngineError
from engine.shared_inputs import seen_inputs

# Legend: B rows, T tokens, S keys, H hidden, N chosen places, V vocabulary

Precision = Literal["float32", "bfloat16"]


class Twin:
    """Computes hidden states and logits. The backbone's modules and weights are never touched."""

    def __init__(self, backbone: Backbone, precision: Precision | None = None) -> None:
        """`precision` "bfloat16" autocasts a float32 backbone where the device computes bfloat16 fast; else its own dtype."""
        _refuse_other_attention(backbone)
        casts = precision == "bfloat16" and backbone.dtype == torch.float32 and fast_bfloat16(backbone.device)
        self.low = torch.bfloat16 if casts else None
        self.device = backbone.device
        self.dtype = self.low or backbone.dtype
        self.model: PreTrainedModel = copy.deepcopy(backbone.model, {id(p): p for p in backbone.model.parameters()})
        _unwrap(self.model)
        if self.model.config._attn_implementation != "sdpa":
            self.model.set_attn_implementation("sdpa")
        if self.low is not None:
            # Autocast casts a frozen float32 weight anew in every forward; here it is cast once, with a fit that goes on beside.
            floating = [module for module in self.linears().values() if module.weight.is_floating_point()]
            self._held = [low for module in floating for low in _cast(module, self.low)]
        parts = replace(backbone, model=self.model)
        self._decoder, self.embeddings, self.layers = parts.decoder, parts.embeddings, tuple(parts.layers)
        self._head: nn.Module = self.model.get_output_embeddings()
        # Paths of linear layers that read the same tensor.
        self.groups = self._probed(backbone)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def linears(self) -> dict[str, nn.Linear]:
        """By module path below the causal LM."""
        return {path: module for path, module in self.model.named_modules() if isinstance(module, nn.Linear)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """The state that every forward needs."""
        cast = nullcontext() if self.low is None else torch.autocast(self.device.type, self.low)
        with torch.inference_mode(), cast:
            yield

    def states(self, embeds_BTH: Tensor, positions_BT: Tensor, mask_B1TS: Tensor, cache: Cache | None = None) -> Tensor:
        """Final hidden states, [B, T, H]. The mask is True where a query reads a key."""
        found = self._decoder(
            inputs_embeds=embeds_BTH,
            position_ids=positions_BT,
            attention_mask=mask_B1TS,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        states: Tensor = found.last_hidden_state
        return states

    def logits(self, states_NH: Tensor) -> Tensor:
        """[N, V] in float32."""
        logits: Tensor = self._head(states_NH)
        return logits.float()

    def _probed(self, backbone: Backbone) -> tuple[tuple[str, ...], ...]:
        """Some architectures scale or cap their logits outside the head; they must not be served wrongly."""
        ids_BT = torch.tensor([[0, 1]], device=self.device)
        with self.running(), seen_inputs(self.linears()) as seen:
            whole = self.model(input_ids=ids_BT, use_cache=False).logits[0].float()
            causal = torch.ones(2, 2, dtype=torch.bool, device=self.device).tril()[None, None]
            positions_BT = torch.tensor([[0, 1]], device=self.device)
            ours = self.logits(self.states(self.embeddings(ids_BT), positions_BT, causal)[0])
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        if not torch.allclose(whole, ours, atol=tolerance, rtol=tolerance):
            raise EngineError(
                f"The engine needs logits = head(hidden states), but {type(self.model).__name__} of {backbone.name!r} computes "
                "them otherwise. Use another backbone or another engine."
            )
        return seen.groups()


def _refuse_other_attention(backbone: Backbone) -> None:
    kinds = set(getattr(backbone.model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise EngineError(
            f"The PyTorch engine serves backbones whose layers all have full attention, but {backbone.name!r} has "
            f"{', '.join(sorted(kinds))}. Use another backbone or another engine."
        )


def _unwrap(model: nn.Module) -> None:
    """Undoes, in the twin, a LoRA or a steering vector that was attached to the backbone at that moment."""
    for path, module in list(model.named_modules()):
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, ResidualShift)]:
            del module._forward_hooks[key]
        wrapped = getattr(module, "base_layer", None)
        if isinstance(wrapped, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, wrapped)


def _cast(module: nn.Linear, dtype: torch.dtype) -> list[LowWeight]:
    held = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        held.append(LowWeight.of(parameter, dtype))
        setattr(module, name, nn.Parameter(held[-1].tensor, requires_grad=False))
    return held
