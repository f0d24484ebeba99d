"""Adapters as files that vLLM reads: one directory a content, written whole, never written again."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from adapters.adapter import Contribution, LowRank
from adapters.backbone import Backbone
from adapters.lora import CONFIG, PREFIX, WEIGHTS
from adapters.weights import digest_of
from adapters.whole_file import write_whole
from engine.vllm.gate import ATTENTION_AND_MLP, padded, rank_of

_DIGEST = 16  # hexadecimal digits of SHA-256 in a directory's name


@dataclass(frozen=True)
class AdapterFiles:
    """A plain LoRA in PEFT's layout. The directory's name is the digest: other weights are another directory."""

    digest: str
    directory: Path


def write_adapter(contribution: Contribution, root: Path) -> AdapterFiles:
    """All scaling lies in B, so alpha is the rank; every module has the largest rank. Written once: a second call finds it."""
    rank = rank_of(contribution.low_rank.values())
    tensors = {}
    for path, update in padded(contribution.low_rank, rank).items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = update.a_RI.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = update.b_OR.detach().float().cpu().contiguous()
    digest = digest_of(tensors)[:_DIGEST]
    directory = root / digest
    if directory.is_dir():
        return AdapterFiles(digest, directory)
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=root, prefix=".part-"))
    try:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        write_whole(part / CONFIG, json.dumps(_config(contribution, rank)) + "\n")
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return AdapterFiles(digest, directory)


def zero_update(backbone: Backbone) -> Contribution:
    """An update of one layer that changes nothing."""
    for path, module in backbone.model.named_modules():
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in ATTENTION_AND_MLP:
            zeros = LowRank(torch.zeros(1, module.in_features), torch.zeros(module.out_features, 1))
            return Contribution({path: zeros})
    raise ValueError(
        f"The vLLM engine updates {', '.join(ATTENTION_AND_MLP)}, but {backbone.name!r} has none of these layers. "
        "Use the PyTorch engine."
    )


def _config(contribution: Contribution, rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({path.rpartition(".")[2] for path in contribution.low_rank}),
        "inference_mode": True,
    }
