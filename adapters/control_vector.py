"""Control vectors of llama.cpp: a GGUF file with one direction a block, added to what that block puts out at every token.

llama.cpp numbers blocks from 0, as Graftline does layers, and steers none below the second: `direction.1` belongs to layer 1.
A file has one strength inside; what `--control-vector-scaled` multiplies comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter, RefusedAdapter
from adapters.steering import Steering, SteeringSpec
from adapters.whole_file import written_whole

ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")
_NOTHING = Prompt(())


def export_control_vector(file: Path, steering: Sequence[Steering], backbone: Backbone) -> None:
    """Gamma and scale are inside what is written, in float32. Vectors of one layer are summed, as llama.cpp sums files."""
    directions: dict[int, np.ndarray[Any, Any]] = {}
    for one in steering:
        one.transform(backbone, _NOTHING)  # refuses a vector of another backbone
        if one.hold is not None:
            raise RefusedAdapter(
                "A control vector adds the same at every token, but this one holds a feature, which adds what is missing. Steer "
                "by the feature's column instead."
            )
        for layer, vector_H in one.contribution().residual.items():
            if layer == 0:
                raise RefusedAdapter(
                    "llama.cpp steers blocks from the second on, but this vector stands after layer 0. Make one for a higher one."
                )
            summed = directions.get(layer, 0.0) + vector_H.float().cpu().numpy()
            directions[layer] = summed.astype("<f4")
    if not directions:
        raise RefusedAdapter("A control vector holds a steering vector or more, but got none. Give a directory that has one.")
    from gguf import GGUFWriter

    with written_whole(file) as part:
        writer = GGUFWriter(part, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", str(backbone.model.config.model_type))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(backbone.layers))
        for layer, direction in sorted(directions.items()):
            writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def import_control_vector(file: Path, backbone: Backbone) -> tuple[Steering, ...]:
    """One steering vector a direction, lowest layer first, at the strength that the file holds; all-zero directions are none."""
    if not file.is_file():
        raise DamagedAdapter(f"A control vector is a GGUF file, but {file} is not there. Check the path.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        field = reader.fields["general.architecture"]
        architecture = bytes(field.parts[field.data[0]]).decode()
        tensors = [(tensor.name, tensor.tensor_type.name, np.array(tensor.data)) for tensor in reader.tensors]
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise DamagedAdapter(f"{file} is not a whole GGUF file ({error!r}). Download or export it again.") from error
    if architecture != ARCHITECTURE:
        raise RefusedAdapter(f"A control vector has the architecture {ARCHITECTURE!r}, but {file} has {architecture!r}.")
    found: list[Steering] = []
    for name, kind, direction in tensors:
        place = _DIRECTION.fullmatch(name)
        if place is None or kind != "F32" or int(place[1]) < 1 or not np.isfinite(direction).all():
            raise DamagedAdapter(
                f"A control vector holds finite directions in F32, called direction.1 and so on, but {file} has {name} in "
                f"{kind}. Export it again."
            )
        if direction.any():
            spec = SteeringSpec(layer=int(place[1]))
            found.append(Steering.of(spec, backbone, torch.from_numpy(direction.astype(np.float32))))
    if not found:
        raise RefusedAdapter(f"A control vector steers one block or more, but every direction in {file} is 0.")
    return tuple(sorted(found, key=lambda steering: steering.layer or 0))
