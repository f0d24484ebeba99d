"""The budget policy: caps, forced answers, ignored ends."""

from __future__ import annotations

import pytest
from fitted import fitted_softcot
from scripted_engine import Reply, ScriptedEngine, gold

from adapters.backbone import Backbone
from engine.decoding.budget import Budget, extended, ids_within, write_traces
from engine.engine import GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.task import Example, reasoning_prompt
from evaluation.tasks import FAMILIES

TASK = FAMILIES["arithmetic"]


@pytest.fixture
def examples() -> list[Example]:
    return TASK.examples("search", 5)


def requests(backbone: Backbone, examples: list[Example]) -> list[GenerationRequest]:
    return [GenerationRequest(backbone.chat_ids(reasoning_prompt(example)), temperature=0.0) for example in examples]


def test_a_trace_within_the_budget_and_its_own_answer_are_left_as_they_are(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: gold})
    for example, found in zip(
        examples, Budget(max_trace_tokens=100).complete(engine, backbone, requests(backbone, examples)), strict=True
    ):
        assert found.text == example.chain and found.trace.has_ended
        assert backbone.decode(found.trace.ids) == found.trace.text


def test_a_longer_trace_is_cut_at_the_budget_and_the_answer_is_forced(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: gold})
    for example, found in zip(
        examples, Budget(max_trace_tokens=9).complete(engine, backbone, requests(backbone, examples)), strict=True
    ):
        assert len(found.trace.ids) == 9 and not found.trace.has_ended
        assert example.chain.startswith(found.trace.text) and found.answer


def test_a_budget_of_nothing_asks_for_the_answer_at_once(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: gold})
    found = Budget(max_trace_tokens=0).complete(engine, backbone, requests(backbone, examples))
    assert {budgeted.text for budgeted in found} == {"Answer: 0"}


def test_a_trace_of_just_the_budget_has_ended(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: gold})
    asked = requests(backbone, examples[:1])
    length = len(write_traces(engine, backbone, asked, 200)[0].ids)
    assert write_traces(engine, backbone, asked, length)[0].has_ended
    assert not write_traces(engine, backbone, asked, length - 1)[0].has_ended


def test_an_ignored_end_goes_on_with_the_likeliest_other_token(backbone: Backbone, examples: list[Example]) -> None:
    def stubborn(example: Example, begun: str) -> Reply:
        return Reply(" more\nAnswer: 1") if begun.endswith("W") else gold(example, begun)

    assert backbone.decode(backbone.encode("Wait")[:1]) == "W"
    engine = ScriptedEngine(backbone, examples, {None: stubborn})
    asked = requests(backbone, examples)
    once = Budget(max_trace_tokens=100, num_ignored_ends=1).complete(engine, backbone, asked)
    for example, found in zip(examples, once, strict=True):
        assert found.trace.text == f"{example.rationale}\nW more\n" and found.trace.has_ended
    short = Budget(max_trace_tokens=4, num_ignored_ends=1).complete(engine, backbone, asked)
    assert [found.trace for found in short] == write_traces(engine, backbone, asked, 4)


def test_a_reply_that_ends_without_a_cue_has_ended_and_can_be_gone_on_with(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: lambda example, begun: Reply("on" if begun else "x")})
    asked = requests(backbone, examples[:1])
    trace = write_traces(engine, backbone, asked, 20)
    assert trace[0].text == "x" and trace[0].has_ended
    assert extended(engine, backbone, asked, trace, 20)[0].text == "xWon"


@pytest.mark.parametrize("profile", [None, "soft"])
def test_a_capped_trace_is_the_beginning_of_what_the_profile_writes(backbone: Backbone, profile: str | None) -> None:
    # Soft thoughts stand in the prompt: what is written after a cut must not move them.
    engine = TorchEngine(backbone)
    engine.load("soft", Profile((fitted_softcot(backbone, 3),)))
    ids = backbone.chat_ids("Start with 12. Add 5.")
    asked = GenerationRequest(ids, profile, 14, temperature=0.0)
    whole = engine.complete([asked])[0]
    found = Budget(max_trace_tokens=6, max_answer_tokens=4).complete(engine, backbone, [asked])[0]
    assert found.trace.ids == whole.token_ids[:6]
    engine.close()


def test_the_ids_of_a_text_end_where_the_text_does(backbone: Backbone) -> None:
    ids = [*backbone.encode("Add 5.\nAnswer: 7"), int(backbone.tokenizer.eos_token_id)]
    assert backbone.decode(ids_within(backbone, ids, "Add 5.\n")) == "Add 5.\n"
    assert ids_within(backbone, ids, "Add 5.\nAnswer: 7") == tuple(ids[:-1])
    assert ids_within(backbone, ids, "") == ()


@pytest.mark.parametrize("wrong", [{"max_trace_tokens": -1}, {"max_trace_tokens": 1, "max_answer_tokens": 0}])
def test_an_impossible_budget_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="greater than or equal to"):
        Budget(**wrong)
