"""The logits processor of vLLM's first model runner: CPUs, and wherever Triton is not there. Loaded by name in vLLM's process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from engine.vllm.chosen import Asked, ChosenRow, ChosenRows
from engine.vllm.words import Words

# Legend: V vocabulary


class ChosenTokens(AdapterLogitsProcessor):  # type: ignore[misc]
    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._rows = ChosenRows(words_of(vllm_config, device))

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        Asked.of(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> _Left | None:
        row = self._rows.of(params.extra_args)
        return None if row is None else _Left(row)


class _Left:
    """vLLM counts the parameters: two are what is written and the row's logits."""

    def __init__(self, row: ChosenRow) -> None:
        self._row = row

    def __call__(self, written: Sequence[int], logits_V: Tensor) -> Tensor:
        return self._row.leave_one(written, logits_V)


def words_of(vllm_config: VllmConfig, device: torch.device) -> Words:
    told = vllm_config.additional_config["graftline"]
    return Words.load(vllm_config.model_config.tokenizer, told["name"], told["stop_ids"], device)
