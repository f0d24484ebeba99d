"""Budgets on backbones that think between markers: what counts as the trace, and how it is closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from thinking_backbones import thinking_directory

from adapters.backbone import Backbone
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget, closing_after, end_of_trace
from engine.decoding.row_budget import CompiledBudget
from engine.decoding.row_policy import CompiledPolicy
from engine.decoding.trace import Trace
from engine.engine import GenerationRequest
from engine.errors import CannotRun
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine

PROMPT = [{"role": "user", "content": "Add 5."}]


@pytest.fixture(scope="module", params=["words", "specials"])
def thinking(request: pytest.FixtureRequest, backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("thinking") / "backbone"
    directory = thinking_directory(backbone_directory, folder, opens=True, special=request.param == "specials")
    return Backbone.load(str(directory), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def engine(thinking: Backbone) -> Iterator[TorchEngine]:
    engine = TorchEngine(thinking)
    yield engine
    engine.close()


def taken(backbone: Backbone, text: str, begin: str = "<think>") -> Trace:
    trace = Trace(backbone.decode, "</think>", begin)
    for token in backbone.encode(text):
        trace.take(token)
    return trace


def test_the_end_marker_ends_the_trace_of_such_a_backbone_alone(thinking: Backbone, backbone: Backbone) -> None:
    policy = DecodingPolicy()
    assert (policy.end_on(thinking), policy.end_on(backbone)) == ("</think>", "Answer:")
    assert DecodingPolicy(trace_end="Done.").end_on(thinking) == "Done."
    assert (end_of_trace(thinking), end_of_trace(backbone)) == ("</think>", "Answer:")
    assert closing_after(thinking, "Add 5.") == "\n</think>\n\nAnswer:"


def test_a_cap_closes_a_chain_that_the_prompt_began(engine: TorchEngine, thinking: Backbone) -> None:
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=6, answer_is_line=False, max_answer_tokens=8))
    ids = thinking.chat_ids(PROMPT)
    free, capped = (engine.complete([GenerationRequest(ids, None, 40, policy=one)])[0] for one in (None, policy))
    assert "</think>" not in free.text
    before, mark, _ = capped.text.partition("\n</think>")
    assert mark and free.text.startswith(before)
    assert capped.token_ids[:6] == free.token_ids[:6]


def test_a_reply_without_a_chain_is_not_closed(thinking: Backbone) -> None:
    trace = taken(thinking, " The sum")
    assert not trace.is_open and trace.num_tokens == 0
    assert trace.num_answer_tokens == len(thinking.encode(" The sum"))


def test_a_marker_in_pieces_begins_and_ends_the_trace(backbone: Backbone) -> None:
    # To this tokenizer the markers are ordinary characters.
    assert len(backbone.encode("<think>")) > 2
    trace = taken(backbone, "\n<think>Add 5.")
    assert trace.is_open and trace.num_tokens == len(backbone.encode("\n<think>Add 5."))
    assert not taken(backbone, "\n<think>Add 5.</think>").is_open


def test_what_closes_a_chain_begins_it_where_it_has_not_begun(backbone: Backbone) -> None:
    assert taken(backbone, "").closing == "<think>\n</think>"
    assert taken(backbone, "<th").closing == "ink>\n</think>"
    assert taken(backbone, "<think>Add").closing == "\n</think>"


def test_a_minimum_holds_back_the_end_and_not_every_space(thinking: Backbone) -> None:
    compiled = CompiledBudget.of(Budget(min_trace_tokens=5), thinking, "</think>")
    logits_V = torch.zeros(thinking.embeddings.num_embeddings)
    held_V = compiled.for_row(100).adjust(logits_V, taken(thinking, "<think>"))
    forbidden = {int(i) for i in torch.nonzero(held_V.isinf())}
    assert thinking.encode("</think>")[0] in forbidden
    assert thinking.encode(" ")[0] not in forbidden


def test_a_cap_without_a_place_for_the_answer_does_not_give_way(thinking: Backbone) -> None:
    trace, drawn = taken(thinking, "<think> one two three"), thinking.encode("x")[0]
    forced = {}
    for reserves in (True, False):
        budget = Budget(max_trace_tokens=50, max_answer_tokens=90, reserves_answer=reserves)
        forced[reserves] = CompiledBudget.of(budget, thinking, "</think>").for_row(100).force(drawn, trace) != drawn
    assert forced == {True: True, False: False}


def test_the_two_call_form_closes_the_chain_and_asks_for_the_answer(engine: TorchEngine, thinking: Backbone) -> None:
    found = Budget(max_trace_tokens=6).complete(engine, thinking, [GenerationRequest(thinking.chat_ids(PROMPT))])[0]
    assert found.text.startswith(f"{found.trace.text}\n</think>\n\nAnswer: ")


def test_branches_that_are_read_by_their_answer_line_are_refused(thinking: Backbone) -> None:
    with pytest.raises(CannotRun, match="</think>"):
        CompiledPolicy.of(DecodingPolicy(branches=Branches()), thinking)
