"""PEFT's mixed batches without a server: a batch of whoever waits, written to the end of its longest reply, then the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.arrivals import Arrival, Served


class _FirstToken(LogitsProcessor):
    """Notes when the first token's logits were there."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return scores


@dataclass
class PeftBatches:
    model: Any
    rows: int

    @classmethod
    def loaded(cls, model: Path, adapters: Sequence[Path], rows: int, threads: int) -> PeftBatches:
        torch.set_num_threads(threads)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        found = PeftModel.from_pretrained(base, adapters[0], adapter_name="a0")
        for index, place in enumerate(adapters[1:], start=1):
            found.load_adapter(place, adapter_name=f"a{index}")
        return cls(found.to(torch.bfloat16).eval(), rows)

    def served(self, asked: Sequence[Arrival]) -> list[Served]:
        """Each at its moment; a request's first token is there with its batch's first."""
        found: dict[int, Served] = {}
        waiting, began, lock = list[int](), time.perf_counter(), threading.Condition()

        def arrive() -> None:
            for index, arrival in enumerate(asked):
                time.sleep(max(0.0, arrival.at_s - (time.perf_counter() - began)))
                with lock:
                    waiting.append(index)
                    lock.notify()

        threading.Thread(target=arrive, daemon=True).start()
        while len(found) < len(asked):
            with lock:
                lock.wait_for(lambda: bool(waiting))
                batch, waiting[:] = waiting[: self.rows], waiting[self.rows :]
            first_at = self._written([asked[index] for index in batch])
            ended = time.perf_counter()
            for index in batch:
                sent = began + asked[index].at_s
                found[index] = Served(first_at - sent, ended - sent, asked[index].max_tokens)
        return [found[index] for index in range(len(asked))]

    @torch.inference_mode()
    def _written(self, batch: Sequence[Arrival]) -> float:
        width, first = max(len(one.prompt_ids) for one in batch), _FirstToken()
        # Left padding, as generation wants it.
        ids_BT = torch.tensor([[0] * (width - len(one.prompt_ids)) + list(one.prompt_ids) for one in batch])
        mask_BT = torch.tensor([[0] * (width - len(one.prompt_ids)) + [1] * len(one.prompt_ids) for one in batch])
        longest = max(one.max_tokens for one in batch)
        self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            adapter_names=[f"a{one.adapter}" for one in batch],
            max_new_tokens=longest,
            min_new_tokens=longest,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([first]),
        )
        assert first.at is not None
        return first.at
