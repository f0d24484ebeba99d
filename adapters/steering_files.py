"""A steering vector's files: where the block allows it, a LoRA of rank 1 that is all bias, which PEFT loads as it is.

A block that ends in `states + mlp(states)` is steered alike by a bias of the last linear layer of its mlp and by a hook on its
output. A block that norms or scales the mlp's output (Gemma 2, OLMo 2, Granite) is not: its vector is stored as such, and acts by
the hook alone. So is a vector that holds a feature, with the encoder's row for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter
from adapters.hold import Hold
from adapters.lora import CONFIG, PREFIX, WEIGHTS, adapters_off
from adapters.weights import read_tensors
from adapters.whole_file import write_whole

# Legend: T tokens, H hidden

STEERING = "steering.json"
_TOLERANCE, _LOW_TOLERANCE = 1e-4, 0.05  # of the length of what is added, in float32 and in less; a norm changes far more
_HELD = ("bias", "threshold", "level")  # the numbers of a hold, in its own order
_PROBE_IDS = (3, 1, 2, 0)


@dataclass(frozen=True)
class LastLinear:
    """The linear layer whose output goes into its block's output as it is."""

    path: str  # below the causal LM
    num_in: int


def last_linear(backbone: Backbone, layer: int) -> LastLinear | None:
    """Found by trying: a bias of it must shift the block's output by just that bias. None where no linear layer does so."""
    block = backbone.layers[layer]
    paths = {id(module): path for path, module in backbone.model.named_modules()}
    linears = [module for module in block.modules() if isinstance(module, nn.Linear) and id(module) in paths]
    tolerance = _TOLERANCE if backbone.dtype == torch.float32 else _LOW_TOLERANCE
    bias_H = torch.linspace(-1.0, 1.0, backbone.hidden_size, device=backbone.device)
    with torch.no_grad(), adapters_off(backbone.model):
        plain_TH = _output(backbone, block)
        # The largest states there: what is added must not drown in their rounding.
        bias_H = (bias_H * plain_TH.abs().amax()).to(plain_TH)
        for linear in reversed(linears):
            if linear.out_features != backbone.hidden_size:
                continue
            with _shifted(linear, bias_H):
                moved_TH = _output(backbone, block) - plain_TH
            if float((moved_TH - bias_H).norm(dim=-1).amax()) <= tolerance * float(bias_H.norm()):
                return LastLinear(paths[id(linear)].removesuffix(".base_layer"), linear.in_features)
    return None


def write(
    directory: Path,
    vector_H: Tensor,
    factor: float,
    place: LastLinear | None,
    described: dict[str, Any],
    hold: Hold | None = None,
) -> None:
    """`factor` times the vector is what acts; `described` is what only Graftline reads. What holds a feature has no place."""
    vector_H = vector_H.detach().float().cpu().contiguous()
    if place is None:
        tensors = {"vector": vector_H}
        if hold is not None:
            tensors["encoder"] = hold.encoder_H.detach().float().cpu().contiguous()
            described = {**described, "hold": {name: getattr(hold, name) for name in _HELD}}
        save_file(tensors, directory / WEIGHTS)
        write_whole(directory / CONFIG, json.dumps({"peft_type": "STEERING", "format_version": 2}, indent=2) + "\n")
    else:
        lora = f"{PREFIX}{place.path}.lora_"
        tensors = {
            f"{lora}A.weight": torch.zeros(1, place.num_in),
            f"{lora}B.weight": torch.zeros(len(vector_H), 1),
            f"{lora}B.bias": vector_H,
        }
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig(
            r=1, lora_alpha=factor, lora_bias=True, target_modules=[place.path], task_type="CAUSAL_LM", inference_mode=True
        )
        config.save_pretrained(directory)
    write_whole(directory / STEERING, json.dumps({"format_version": 2, **described}, indent=2) + "\n")


@dataclass(frozen=True)
class Stored:
    vector_H: Tensor
    described: dict[str, Any]
    place: LastLinear | None
    factor: float | None  # as PEFT's config has it; None where the hook alone acts
    hold: Hold | None = None


def read(directory: Path) -> Stored:
    """Both forms, and the files of before there was a form for PEFT."""
    config, tensors = json.loads((directory / CONFIG).read_text()), read_tensors(directory / WEIGHTS)
    if config["peft_type"] == "STEERING":
        described = json.loads((directory / STEERING).read_text()) if config["format_version"] > 1 else config
        told = described.get("hold")
        hold = Hold(tensors["encoder"], *(float(told[name]) for name in _HELD)) if told else None
        return Stored(tensors["vector"], described, None, None, hold)
    described = json.loads((directory / STEERING).read_text())
    found = {key.rpartition(".lora_")[2]: tensor for key, tensor in tensors.items()}
    paths = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    if set(found) != {"A.weight", "B.weight", "B.bias"} or len(paths) != 1 or found["A.weight"].any() or found["B.weight"].any():
        raise DamagedAdapter(
            f"A steering vector for PEFT is the bias of one layer whose A and B are 0, but {directory / WEIGHTS} holds more. "
            "Load it as a LoRA from a directory of its own."
        )
    return Stored(found["B.bias"], described, LastLinear(paths.pop(), found["A.weight"].shape[1]), float(config["lora_alpha"]))


def is_steering(config: Path, peft_type: str) -> bool:
    """Whether that config is of a steering vector: in PEFT's form it says LORA, and a description stands beside it."""
    return peft_type == "STEERING" or (config.parent / STEERING).is_file()


def _output(backbone: Backbone, block: nn.Module) -> Tensor:
    """What the block puts out for the probe, [T, H] in float32."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0])[0].float())

    hook = block.register_forward_hook(keep)
    try:
        backbone.decoder(input_ids=torch.tensor([_PROBE_IDS], device=backbone.device), use_cache=False)
    finally:
        hook.remove()
    return kept[0]


@contextmanager
def _shifted(linear: nn.Linear, bias_H: Tensor) -> Iterator[None]:
    hook = linear.register_forward_hook(lambda module, inputs, output: output + bias_H.to(output))
    try:
        yield
    finally:
        hook.remove()
