"""Rows whose tokens are chosen inside vLLM: the same as the PyTorch engine's, however vLLM computes its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from thinking_backbones import thinking_directory

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine
from engine.vllm.chosen import FIELD, Asked, ChosenRow, ChosenRows
from engine.vllm.words import Words

BUDGET = Budget(max_trace_tokens=6, max_answer_tokens=4, min_trace_tokens=2, num_ignored_ends=1)
CAPPED = DecodingPolicy(trace_end="|", budget=BUDGET)
PENALISED = DecodingPolicy(trace_end="|", tip=SwitchPenalty(alpha=5.0, words=("step", "12")))
PROMPT = "Start with 12. Add 5."
NUM_TOKENS = 24


def words_of(backbone: Backbone) -> Words:
    return Words(backbone.tokenizer, backbone.name, backbone.stop_ids)


def asked(policy: DecodingPolicy, key: str = "a", **changes: object) -> dict[str, object]:
    told = Asked(key=key, policy=policy, max_new_tokens=NUM_TOKENS, **changes)  # type: ignore[arg-type]
    return {FIELD: told.model_dump_json()}


def logits(backbone: Backbone, written: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return backbone.model(torch.tensor([[*backbone.chat_ids(PROMPT), *written]])).logits[0, -1].float()


def written_by(backbone: Backbone, row: ChosenRow, count: int, each_twice: bool = False) -> list[int]:
    """As vLLM does: it takes the likeliest of what is left to it."""
    written: list[int] = []
    while len(written) < count:
        here = logits(backbone, written)
        if each_twice:
            row.leave_one(written, here)
        written.append(int(row.leave_one(written, here).argmax()))
    return written


@pytest.mark.parametrize("special", [False, True])
def test_a_chain_between_markers_is_cut_where_the_pytorch_engine_cuts_it(
    backbone_directory: Path, tmp_path: Path, special: bool
) -> None:
    """The policy names no end of its own: the backbone's end marker is it."""
    directory = thinking_directory(backbone_directory, tmp_path / "thinker", opens=True, special=special)
    thinker = Backbone.load(str(directory), device="cpu", dtype=torch.float32)
    assert thinker.markers is not None
    policy = DecodingPolicy(budget=BUDGET)
    engine = TorchEngine(thinker)
    (expected,) = engine.complete([GenerationRequest(thinker.chat_ids(PROMPT), None, NUM_TOKENS, 0.0, policy=policy)])
    engine.close()
    assert thinker.encode(thinker.markers.end)[-1] in expected.token_ids or "</think>" in expected.text
    row = ChosenRows(words_of(thinker)).of(asked(policy, prompt_ids=thinker.chat_ids(PROMPT)))
    assert row is not None
    assert tuple(written_by(thinker, row, len(expected.token_ids))) == expected.token_ids


@pytest.mark.parametrize("policy", [CAPPED, PENALISED, CAPPED.model_copy(update={"tip": PENALISED.tip})])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_tokens_are_those_of_the_pytorch_engine(backbone: Backbone, policy: DecodingPolicy, temperature: float) -> None:
    engine = TorchEngine(backbone)
    request = GenerationRequest(backbone.chat_ids(PROMPT), None, NUM_TOKENS, temperature, seed=3, policy=policy)
    (expected,) = engine.complete([request])
    engine.close()
    row = ChosenRows(words_of(backbone)).of(asked(policy, temperature=temperature, seed=3))
    assert row is not None
    assert tuple(written_by(backbone, row, len(expected.token_ids))) == expected.token_ids


def test_penalties_act_after_the_policy_as_in_the_pytorch_engine(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    given = {"repetition_penalty": 1.5, "presence_penalty": 2.0, "frequency_penalty": 0.5, "top_k": 20, "min_p": 0.01}
    prompt = backbone.chat_ids(PROMPT)
    (expected,) = engine.complete([GenerationRequest(prompt, None, NUM_TOKENS, 0.8, seed=3, policy=PENALISED, **given)])  # type: ignore[arg-type]
    engine.close()
    row = ChosenRows(words_of(backbone)).of(asked(PENALISED, temperature=0.8, seed=3, prompt_ids=prompt, **given))
    assert row is not None
    assert tuple(written_by(backbone, row, len(expected.token_ids))) == expected.token_ids


def test_a_step_that_is_computed_twice_changes_nothing(backbone: Backbone) -> None:
    policy = CAPPED.model_copy(update={"temperature": 0.9})
    found = []
    for each_twice in (False, True):
        row = ChosenRows(words_of(backbone)).of(asked(policy, temperature=0.9, seed=5))
        assert row is not None
        found.append(written_by(backbone, row, 16, each_twice))
    assert found[0] == found[1]


def test_a_row_that_is_taken_up_again_goes_on_where_it_was(backbone: Backbone) -> None:
    rows = ChosenRows(words_of(backbone))
    one = rows.of(asked(CAPPED, "one"))
    assert one is not None and rows.of(asked(CAPPED, "two")) is not one
    assert rows.of(asked(CAPPED, "one")) is one


def test_a_row_that_was_forgotten_reads_what_stands_written(backbone: Backbone) -> None:
    whole = ChosenRows(words_of(backbone)).of(asked(PENALISED, "whole"))
    assert whole is not None
    written = written_by(backbone, whole, 12)
    late = ChosenRows(words_of(backbone)).of(asked(PENALISED, "late"))
    assert late is not None
    assert late.choose(written[:8], logits(backbone, written[:8])) == written[8]


def test_forced_tokens_stand_whatever_the_model_says(backbone: Backbone) -> None:
    row = ChosenRows(words_of(backbone)).of(asked(DecodingPolicy(), forced_ids=(7, 8, 9)))
    assert row is not None
    assert written_by(backbone, row, 3) == [7, 8, 9]


def test_a_request_without_a_policy_is_vllms_own(backbone: Backbone) -> None:
    assert ChosenRows(words_of(backbone)).of(None) is None
    assert ChosenRows(words_of(backbone)).of({"other": 1}) is None


def test_what_no_engine_wrote_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="written by the engine itself"):
        ChosenRows(words_of(backbone)).of({FIELD: '{"key": "a", "strange": 1}'})
