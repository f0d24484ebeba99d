"""A contract over all methods, on a tiny backbone: one copy of it, every step told, and what the fit cost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from adapters.backbone import Backbone, fast_bfloat16
from adapters.files import new_adapter
from adapters.lora import LoRASpec
from adapters.softcot import SoftCoTSpec
from evaluation.discrimination import Discrimination
from evaluation.task import Example, Split
from tuning.distance import EVERY, FORWARD_KL
from tuning.methods import METHODS
from tuning.methods.rlag import LEAST_ASKED

COLOURS = ("red", "blue", "green")
EXAMPLES = [
    Example(
        id=f"{n}",
        question=f"What colour has stone {n}?",
        answer=COLOURS[n % 3],
        choices=COLOURS,
        rationale=f"Stone {n} is {COLOURS[n % 3]}.",
        group=f"{n}",
        listed=False,
    )
    for n in range(2 * LEAST_ASKED)
]
SHORT = {"steps": 2, "batch_size": 4, "learning_rate": 1e-4}
WRITTEN = {"max_new_tokens": 4}
VALUES: dict[str, dict[str, Any]] = {
    "sft": {"kl_weight": 0.1},
    "softcot": {"kl_weight": 0.1},
    "rewrite": {"num_rewrites": 4},
    "star": {"num_questions": 4, "samples": 2, "rounds": 2, "keep": "any"},
    "critique": {"problems": "families"},
    "criteria": {"problems": "families", "guided": False},
    "rlvr": {**WRITTEN, "group_size": 12, "batch_size": 24},
    "rlsf": {"num_questions": 8, "num_labelled": 8, "max_trace_tokens": 4, "min_gap": 1e-6},
    "sdft": WRITTEN,
    "rlag": {"iterations": 1, "num_texts": 1, "kl_weight": 0.1},
    "rlag_grpo": {**WRITTEN, "group_size": 4, "num_texts": 1},
}
# They write through weights cast to bfloat16, half a copy. Nobody holds more.
CASTING = {"rlvr", "sdft"}
CAST = 0.5 if fast_bfloat16(torch.device("cpu")) else 0
BY_TRL = {"rlvr", "rlsf", "rlag_grpo"}


@dataclass(frozen=True)
class Stones:
    """Right is what has an r or an e early on: a tiny model is right now and then."""

    name: str = "stones"

    def examples(self, split: Split, count: int, seed: int = 0) -> list[Example]:
        return EXAMPLES[:count]

    def is_right(self, example: Example, completion: str) -> bool:
        return any(letter in "eaiou" for letter in completion[:2])


def copies(backbone: Backbone) -> float:
    """Bytes of the tensors that have the embeddings' shape and places of their own, as a multiple of the embeddings'."""
    weight = backbone.embeddings.weight
    found = {tensor.data_ptr(): tensor.nbytes for tensor in tensors() if tensor.shape == weight.shape}
    return sum(found.values()) / weight.nbytes


def tensors() -> Iterator[torch.Tensor]:
    gc.collect()
    return (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))


@pytest.mark.parametrize("name", VALUES)
def test_a_method_fits_beside_one_backbone_and_says_what_it_cost(
    backbone: Backbone, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    if name in BY_TRL:
        pytest.importorskip("trl")
    monkeypatch.setenv("GRAFTLINE_CACHE", str(tmp_path))
    monkeypatch.setattr("tuning.methods.rlsf.trusted", lambda *_: Discrimination(0.9, 0.8, 1.0, None))  # of what is random
    seen, before = list[float](), copies(backbone)

    def look(step: int, steps: int, loss: float) -> None:
        if step == steps:
            seen.append(copies(backbone))

    method = METHODS[name]
    spec = LoRASpec(rank=4) if method.trains("lora") else SoftCoTSpec(num_thoughts=2, assistant_layers=1)
    fit = method(method.spec_type(**(SHORT | VALUES[name]))).fit(backbone, [new_adapter(spec)], EXAMPLES, look, task=Stones())
    assert set(seen) == {before + (CAST if name in CASTING else 0)}
    assert {len(told) for name, told in fit.numbers.items() if name != FORWARD_KL} == {SHORT["steps"]}
    assert len(fit.numbers[FORWARD_KL]) == -(-SHORT["steps"] // EVERY), "the distance is read in the same way under every method"
    assert fit.num_tokens > 0 and fit.seconds > 0 and fit.counts["prepare_s"] >= 0
    assert (fit.num_generated > 0) == (name in {"rewrite", "star", "sdft", *BY_TRL})


def test_a_second_copy_would_be_seen(backbone: Backbone) -> None:
    before, held = copies(backbone), deepcopy(backbone.model)
    assert copies(backbone) == before + 1 and held is not backbone.model


def test_no_method_is_left_out() -> None:
    """But the one that fits nothing by steps: a steering vector is read off the backbone's own states."""
    assert set(METHODS) - set(VALUES) == {"compression"}
