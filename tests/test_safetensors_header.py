"""What the header of a safetensors file claims is compared with the file before a weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from adapters.errors import DamagedAdapter
from adapters.safetensors_header import MAX_HEADER_BYTES, StoredTensor, read_header


def tensor(begin: int, end: int, shape: object = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def stored(tmp_path: Path, header: object, num_bytes: int) -> Path:
    file = tmp_path / "weights.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
    return file


def test_tensors_are_told_with_their_places(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": tensor(8, 12, [2, 1], "BF16"), "a": tensor(0, 8), "none": tensor(12, 12)}
    assert read_header(stored(tmp_path, header, 12)) == {
        "a": StoredTensor("F32", (2,), 0, 8),
        "b": StoredTensor("BF16", (2, 1), 8, 12),
        "none": StoredTensor("F32", (0,), 12, 12),
    }


@pytest.mark.parametrize(
    ("header", "num_bytes", "rule"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "one after the other"),  # they overlap
        ({"a": tensor(0, 8), "b": tensor(12, 16)}, 16, "one after the other"),  # a gap
        ({"a": tensor(4, 8)}, 8, "one after the other"),
        ({"a": tensor(0, 8)}, 4, "cut short"),
        ({"a": tensor(0, 8)}, 12, "must hold 8 bytes of weights, but holds 12"),
        ({"a": tensor(0, 8, [3])}, 8, "follow from its shape"),
        ({"a": tensor(0, 8, [-1, -2])}, 8, "whole numbers"),
        ({"a": tensor(8, 0, [0])}, 0, "follow from its shape"),
        ({"a": tensor(0, 4, [True])}, 4, "whole numbers"),
        ({"a": tensor(0, 4, [1.0])}, 4, "whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "two offsets"),
        ({"a": [1]}, 4, "two offsets"),
        ({"a": tensor(0, 4, [4], "U8")}, 4, "Weights are F64, F32, F16, BF16"),
        ({"a": tensor(0, 4, [1]) | {"dtype": ["F32"]}}, 4, "has a dtype"),
        ([], 0, "must be a JSON object, but is a list"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_rule(tmp_path: Path, header: object, num_bytes: int, rule: str) -> None:
    with pytest.raises(DamagedAdapter, match=rule) as caught:
        read_header(stored(tmp_path, header, num_bytes))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 0) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_header_that_is_not_wholly_there_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(DamagedAdapter, match="begins with the length of its header"):
        read_header(tmp_path / "weights.safetensors")


def test_a_longer_header_than_any_adapter_needs_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        opened.truncate(8 + MAX_HEADER_BYTES + 1)  # a hole: no disk is used
    with pytest.raises(DamagedAdapter, match=f"at most {MAX_HEADER_BYTES}"):
        read_header(file)


@pytest.mark.parametrize("text", [b"\xff{", b"[" * 10**5])
def test_text_that_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(DamagedAdapter, match="must be JSON"):
        read_header(tmp_path / "weights.safetensors")
