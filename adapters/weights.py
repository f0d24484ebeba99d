"""Weights in a safetensors file, read so that damage is found before anything is loaded; and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.errors import DamagedAdapter


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of the file, each of them finite."""
    if not file.is_file():
        raise DamagedAdapter(f"An adapter directory holds its weights, but {file} is not there. Save or download it again.")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedAdapter(f"{file} is not a whole safetensors file ({error}). Save or download it again.") from error
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise DamagedAdapter(
            f"Weights must be finite, but {file} has NaN or infinity in {broken[0]} ({len(broken)} tensors). "
            "The fit that made it diverged: fit again with a lower learning rate."
        )
    return tensors


def digest_of(tensors: Mapping[str, Tensor], *also: object) -> str:
    """SHA-256 over names, shapes and values, and over what else is given."""
    digest = hashlib.sha256(repr(also).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
