"""A backbone of which every process holds a part: FSDP2 or DeepSpeed, by the config file that `accelerate launch` was given.

Decoder layers are sharded, one unit each, and gathered for as long as they compute; embeddings, the last norm and the head are
whole in every process, and so are the adapters, whose gradients are summed as without shards. Of the config file
`fsdp_reshard_after_forward` and `fsdp_offload_params` are followed, or DeepSpeed's `zero_stage` and `offload_param_device`; which
modules are wrapped is not asked of it.
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


def by_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def is_asked() -> bool:
    """Whether the backbone is to be sharded."""
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
    """In place, and for good. BadRecipe for a config file of another version of FSDP, or another stage of DeepSpeed."""
    if by_deepspeed():
        _by_zero(backbone)
    else:
        _by_fsdp(backbone, device)
    _move_the_rest(backbone, device)


def _by_fsdp(backbone: Backbone, device: torch.device) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin = FullyShardedDataParallelPlugin()  # it reads what `accelerate launch` made of the config file
    if plugin.fsdp_version != 2:
        raise BadRecipe(
            f"A backbone is sharded by FSDP2, but the config file of Accelerate has fsdp_version {plugin.fsdp_version}. Set "
            "fsdp_version: 2 in its fsdp_config."
        )
    _begin()
    mesh = init_device_mesh(device.type, (Processes.here().count,))
    offload: dict[str, Any] = {"offload_policy": plugin.cpu_offload} if plugin.cpu_offload else {}
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward, **offload)


def _by_zero(backbone: Backbone) -> None:
    """DeepSpeed's stage 3 without an optimizer of its own: it partitions and gathers the frozen weights, and does no more."""
    stage, own = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")), "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ
    if own or stage != 3:
        raise BadRecipe(
            "A backbone is sharded by stage 3 of DeepSpeed, as the config file of Accelerate itself sets it, but that "
            f"{'names a deepspeed_config_file' if own else f'says zero_stage {stage}'}. Set zero_stage: 3 in its "
            "deepspeed_config, and leave out deepspeed_config_file."
        )
    import deepspeed

    _begin()
    offloaded = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "offload_param": {"device": offloaded}}
    settings: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    if backbone.dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
    deepspeed.initialize(model=backbone.layers, config=settings, dist_init_required=False)


def _begin() -> None:
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group()


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
