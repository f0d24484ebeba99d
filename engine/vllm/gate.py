"""What the vLLM engine takes of a profile: refused here by name, so that vLLM never reads what could end it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from adapters.adapter import Contribution, LowRank, Stack
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter, RefusedAdapter
from adapters.softcot import SoftCoT
from engine.profile import Profile

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The same layers under the names that vLLM fuses them to. Wrapping the embeddings or the head too would end the engine as soon
# as soft thoughts stand beside a LoRA.
WRAPPED = (*ATTENTION_AND_MLP, "qkv_proj", "gate_up_proj")
_ELSE = "Serve it with the PyTorch engine, or fit it again without that."


def admitted(name: str, profile: Profile, backbone: Backbone, max_rank: int) -> Contribution:
    """The profile's update of the linear layers, every part of it checked. RefusedAdapter or DamagedAdapter names the part."""
    contribution = Stack(profile.adapters).contribution()
    if contribution.residual or contribution.held:
        raise RefusedAdapter(f"vLLM adds no vectors to hidden states, but {name!r} holds `steering`. {_ELSE}")
    linears = {path: module for path, module in backbone.model.named_modules() if isinstance(module, nn.Linear)}
    refuse_targets(name, contribution.low_rank)
    for path, update in contribution.low_rank.items():
        _refuse_update(name, path, update, linears.get(path), max_rank)
    _refuse_damaged_thoughts(name, profile, backbone)
    return contribution


def refuse_targets(name: str, paths: Iterable[str]) -> None:
    """RefusedAdapter where a module is none of attention and MLP."""
    strange = sorted({path.rpartition(".")[2] for path in paths} - set(ATTENTION_AND_MLP))
    if strange:
        raise RefusedAdapter(
            f"vLLM runs the `target_modules` {', '.join(ATTENTION_AND_MLP)} here, but {name!r} also updates "
            f"{', '.join(strange)}. {_ELSE}"
        )


def rank_of(updates: Collection[LowRank]) -> int:
    """The largest; 0 where there is no update."""
    return max((update.a_RI.shape[0] for update in updates), default=0)


def padded(updates: Mapping[str, LowRank], rank: int) -> dict[str, LowRank]:
    """The same updates, each of this rank: rows and columns of zeros are added."""
    return {path: _padded(update, rank) for path, update in updates.items()}


def _padded(update: LowRank, rank: int) -> LowRank:
    missing = rank - update.a_RI.shape[0]
    a_RI = torch.cat((update.a_RI, update.a_RI.new_zeros(missing, update.a_RI.shape[1])))
    b_OR = torch.cat((update.b_OR, update.b_OR.new_zeros(update.b_OR.shape[0], missing)), dim=1)
    return LowRank(a_RI, b_OR)


def _refuse_update(name: str, path: str, update: LowRank, target: nn.Linear | None, max_rank: int) -> None:
    if update.bias_O is not None:
        raise RefusedAdapter(f"vLLM runs no `lora_bias`, but {name!r} has one at {path}. {_ELSE}")
    rank = update.a_RI.shape[0]
    if rank > max_rank:
        raise RefusedAdapter(
            f"This engine was started for a `rank` of at most {max_rank}, but {name!r} has {rank} at {path}. Start it with "
            "GRAFTLINE_VLLM_MAX_LORA_RANK at least as large, or fit with a smaller rank."
        )
    maps = (update.a_RI.shape[1], update.b_OR.shape[0])
    if target is None or maps != (target.in_features, target.out_features):
        here = "is no linear layer of this backbone" if target is None else f"maps {target.in_features} to {target.out_features}"
        raise RefusedAdapter(
            f"{path} {here}, but the update of {name!r} maps {maps[0]} to {maps[1]}. Load the backbone that it was fitted on."
        )
    if not all(bool(torch.isfinite(part).all()) for part in (update.a_RI, update.b_OR)):
        raise DamagedAdapter(
            f"Weights must be finite, but those of {name!r} at {path} hold NaN or infinity. The fit that made them "
            "diverged: fit again with a lower learning rate."
        )


def _refuse_damaged_thoughts(name: str, profile: Profile, backbone: Backbone) -> None:
    """One prompt's thoughts, of every set."""
    if not any(isinstance(adapter, SoftCoT) for adapter in profile.adapters):
        return
    with torch.no_grad():
        probes = [profile.transform(backbone, backbone.chat_ids("?"), chain) for chain in range(profile.num_chains)]
    if not all(probe.soft_KH is None or bool(torch.isfinite(probe.soft_KH).all()) for probe in probes):
        raise DamagedAdapter(
            f"Weights must be finite, but the soft thoughts of {name!r} hold NaN or infinity. The fit that made them "
            "diverged: fit again with a lower learning rate."
        )
