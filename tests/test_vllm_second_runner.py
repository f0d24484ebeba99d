"""The logits processor for vLLM's Model Runner V2, driven by hand as that runner does: there is no GPU here to run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine
from engine.vllm.chosen import FIELD, Asked

pytest.importorskip("vllm", reason="vLLM has an environment of its own: run `make test-vllm`")
pytestmark = [pytest.mark.slow, pytest.mark.vllm]

BUDGET = Budget(max_trace_tokens=6, max_answer_tokens=4, min_trace_tokens=2, num_ignored_ends=1)
POLICY = DecodingPolicy(trace_end="|", budget=BUDGET, tip=SwitchPenalty(alpha=5.0, words=("step", "12")))
PROMPTS = ("Start with 12. Add 5.", "Diagnosis: Cholera")
NUM_TOKENS = 24
SLOTS = 4


@dataclass
class Runner:
    """What the runner holds of its requests, and how it asks for their next tokens."""

    backbone: Backbone
    processor: Any = None
    states: Any = None
    seats: dict[int, list[int]] = field(default_factory=dict)  # prompt and reply, by slot

    @classmethod
    def over(cls, backbone: Backbone, directory: Path) -> Runner:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState

        from engine.vllm.processor_v2 import ChosenTokens

        told = {"graftline": {"name": backbone.name, "stop_ids": sorted(backbone.stop_ids)}}
        config = SimpleNamespace(additional_config=told, model_config=SimpleNamespace(tokenizer=str(directory)))
        states = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=len(backbone.tokenizer),
            all_token_ids=SimpleNamespace(gpu=torch.zeros(SLOTS, 512, dtype=torch.int32)),
            prompt_len=SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
        )
        return cls(backbone, ChosenTokens(config, states), states)

    def take_up(self, slot: int, request: GenerationRequest, key: str, written: tuple[int, ...] = ()) -> bool:
        self.seats[slot] = [*request.prompt_ids, *written]
        self.states.prompt_len.np[slot] = len(request.prompt_ids)
        told = Asked(key=key, policy=POLICY, max_new_tokens=NUM_TOKENS, temperature=request.temperature or 0.0, seed=3)
        return bool(self.processor.add_request(slot, SimpleNamespace(extra_args={FIELD: told.model_dump_json()})))

    def step(self, order: list[int], upto: dict[int, int] | None = None) -> list[int]:
        """One row a slot, in this order. `upto`: a slot of which only so many tokens are read yet, whose token is thrown away."""
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

        lengths = [(upto or {}).get(slot, len(self.seats[slot])) for slot in order]
        rows = [self._logits(self.seats[slot][:length]) for slot, length in zip(order, lengths, strict=True)]
        for slot in order:
            self.states.all_token_ids.gpu[slot, : len(self.seats[slot])] = torch.tensor(self.seats[slot], dtype=torch.int32)
        mapping = np.array(order, dtype=np.int32)
        context = LogitsContext(
            expanded_idx_mapping=torch.tensor(mapping),
            idx_mapping=torch.tensor(mapping),
            idx_mapping_np=mapping,
            expanded_local_pos=torch.zeros(len(order)),
            input_ids=torch.zeros(len(order)),
            pos=torch.tensor(lengths) - 1,
            seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
        )
        drawn = self.processor.apply(torch.stack(rows), context).argmax(dim=-1).tolist()
        for slot, token_id in zip(order, drawn, strict=True):
            if slot not in (upto or {}):
                self.seats[slot].append(token_id)
        return drawn

    def written(self, slot: int) -> tuple[int, ...]:
        return tuple(self.seats[slot][self.states.prompt_len.np[slot] :])

    def _logits(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.backbone.model(torch.tensor([ids])).logits[0, -1].float()


@pytest.fixture
def runner(backbone: Backbone, backbone_directory: Path) -> Runner:
    return Runner.over(backbone, backbone_directory)


def requests(backbone: Backbone) -> list[GenerationRequest]:
    return [
        GenerationRequest(backbone.chat_ids(prompt), None, NUM_TOKENS, 0.9 * place, seed=3, policy=POLICY)
        for place, prompt in enumerate(PROMPTS)
    ]


@pytest.fixture
def expected(backbone: Backbone) -> list[tuple[int, ...]]:
    engine = TorchEngine(backbone)
    found = [completion.token_ids for completion in engine.complete(requests(backbone))]
    engine.close()
    return found


def test_rows_that_change_their_order_write_what_the_pytorch_engine_writes(
    runner: Runner, backbone: Backbone, expected: list[tuple[int, ...]]
) -> None:
    one, two = requests(backbone)
    assert runner.take_up(2, one, "one") and runner.take_up(0, two, "two")
    for step in range(min(map(len, expected))):
        runner.step([2, 0] if step % 2 else [0, 2])
    assert runner.written(2) == expected[0][: len(runner.written(2))]
    assert runner.written(0) == expected[1][: len(runner.written(0))]


def test_a_prompt_that_is_read_in_parts_draws_nothing_before_its_end(
    runner: Runner, backbone: Backbone, expected: list[tuple[int, ...]]
) -> None:
    _, two = requests(backbone)
    runner.take_up(0, two, "two")
    for upto in (3, 6):
        runner.step([0], {0: upto})
    for _ in expected[1]:
        runner.step([0])
    assert runner.written(0) == expected[1]


def test_a_row_that_was_put_aside_goes_on_in_another_slot(
    runner: Runner, backbone: Backbone, expected: list[tuple[int, ...]]
) -> None:
    _, two = requests(backbone)
    runner.take_up(0, two, "two")
    for _ in range(4):
        runner.step([0])
    runner.take_up(3, two, "two", runner.written(0))
    while len(runner.written(3)) < len(expected[1]):
        runner.step([3])
    assert runner.written(3) == expected[1]


def test_a_slot_knows_nothing_of_who_sat_there_before(
    runner: Runner, backbone: Backbone, expected: list[tuple[int, ...]]
) -> None:
    one, two = requests(backbone)
    runner.take_up(1, two, "two")
    runner.step([1])
    runner.take_up(1, one, "one")
    for _ in expected[0]:
        runner.step([1])
    assert runner.written(1) == expected[0]
    assert not runner.processor.add_request(1, SimpleNamespace(extra_args=None))
    assert runner.processor._seats == {}
