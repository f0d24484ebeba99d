"""The header of a safetensors file, checked against the file's size before one byte of the weights is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from adapters.errors import DamagedAdapter

MAX_HEADER_BYTES = 16 * 2**20
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_AGAIN = "Save or download it again."


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the data after the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Floating-point tensors by name, which fill the rest of the file exactly. DamagedAdapter never holds a path.

    A shape is multiplied out in whole numbers of any size and compared with the bytes that are there: what claims terabytes is
    refused without allocating any.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little") if size >= 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise DamagedAdapter(
                f"A safetensors file begins with the length of its header, which is in the file and at most {MAX_HEADER_BYTES} "
                f"bytes, but {file.name} of {size} bytes says {length}. {_AGAIN}"
            )
        text = opened.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedAdapter(f"The header of {file.name} must be JSON, but is not ({error}). {_AGAIN}") from error
    if not isinstance(header, dict):
        raise DamagedAdapter(f"The header of {file.name} must be a JSON object, but is a {type(header).__name__}. {_AGAIN}")
    header.pop("__metadata__", None)
    tensors = {name: _stored(file.name, name, entry) for name, entry in header.items()}
    _check_extent(file.name, tensors, size - 8 - length)
    return tensors


def _stored(file: str, name: str, entry: object) -> StoredTensor:
    try:
        assert isinstance(entry, Mapping)
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (AssertionError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise DamagedAdapter(
            f"A tensor has a dtype, a shape and two offsets, all whole numbers, but {name!r} in {file} has not. {_AGAIN}"
        )
    if dtype not in _ITEM_BYTES:
        raise DamagedAdapter(
            f"Weights are {', '.join(_ITEM_BYTES)}, but {name!r} in {file} is {dtype!r}. Save the adapter in one of these."
        )
    if prod(shape) * _ITEM_BYTES[dtype] != end - begin:
        raise DamagedAdapter(
            f"A tensor's bytes follow from its shape, but {name!r} in {file} has the shape {list(shape)} of {dtype} and "
            f"{end - begin} bytes. {_AGAIN}"
        )
    return StoredTensor(dtype, shape, begin, end)


def _check_extent(file: str, tensors: Mapping[str, StoredTensor], num_bytes: int) -> None:
    reached = 0
    for stored in sorted(tensors.values(), key=lambda one: (one.begin, one.end)):
        if stored.begin != reached:
            raise DamagedAdapter(
                f"Tensors lie one after the other, but in {file} one begins at {stored.begin}, not {reached}. {_AGAIN}"
            )
        reached = stored.end
    if reached != num_bytes:
        raise DamagedAdapter(f"{file} must hold {reached} bytes of weights, but holds {num_bytes}: it was cut short. {_AGAIN}")
