"""Reading a safetensors file so that damage is found before anything is loaded."""

from __future__ import annotations

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
