"""A backbone of which every process holds a part: FSDP2, by the config file that `accelerate launch` was given.

Decoder layers are sharded, one unit each, and gathered for as long as they compute; embeddings, the last norm and the head are
whole in every process, and so are the adapters, whose gradients are summed as without shards. Of the config file
`fsdp_reshard_after_forward` and `fsdp_offload_params` are followed; which modules are wrapped is not asked of it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from adapters.backbone import Backbone
from tuning.errors import BadRecipe
from tuning.ground import backbone_of
from tuning.processes import Processes
from tuning.recipe import Recipe

DEEPSPEED = (
    "A backbone is sharded by FSDP2, but the config file of Accelerate asks for DeepSpeed, whose own optimizer and engine would "
    "take the place of ours. Set distributed_type: FSDP and fsdp_version: 2 in it."
)


def is_asked() -> bool:
    """Whether the backbone is to be sharded. BadRecipe for a config file of DeepSpeed's that would shard it."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise BadRecipe(DEEPSPEED)
    return Processes.here().in_step


def sharded(recipe: Recipe, device: torch.device) -> Backbone:
    """Loaded whole into main memory by every process, and then held in parts on the devices."""
    if recipe.backbone_format != "full":
        raise BadRecipe(
            f"A sharded backbone is held in its own dtype, but backbone_format is {recipe.backbone_format!r}. Leave out one of "
            "the two: a config file of Accelerate that says FSDP, or backbone_format."
        )
    backbone = backbone_of(recipe, "cpu", torch.bfloat16 if device.type == "cuda" else torch.float32)
    shard(backbone, device)
    return backbone


def shard(backbone: Backbone, device: torch.device) -> None:
    """In place. BadRecipe for a config file of another version of FSDP."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin = FullyShardedDataParallelPlugin()  # it reads what `accelerate launch` made of the config file
    if plugin.fsdp_version != 2:
        raise BadRecipe(
            f"A backbone is sharded by FSDP2, but the config file of Accelerate has fsdp_version {plugin.fsdp_version}. Set "
            "fsdp_version: 2 in its fsdp_config."
        )
    if not distributed.is_initialized():
        distributed.init_process_group()
    mesh = init_device_mesh(device.type, (Processes.here().count,))
    offload: dict[str, Any] = {"offload_policy": plugin.cpu_offload} if plugin.cpu_offload else {}
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward, **offload)
    _move_the_rest(backbone, device)


def _move_the_rest(backbone: Backbone, device: torch.device) -> None:
    """What is in no layer, to the device; layers are there by then, or stay where their shards are offloaded to."""
    inside = {id(module) for layer in backbone.layers for module in layer.modules()}
    for module in backbone.model.modules():
        if id(module) in inside:
            continue
        held: dict[str, Any] = {**module._parameters, **module._buffers}
        for tensor in held.values():
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(device)
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.to(device)
