"""A thinking budget inside the engine: on a model that reasons, and step by step on one that does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.row_budget import CompiledBudget
from engine.decoding.trace import Trace
from engine.engine import Completion, GenerationRequest
from engine.errors import CannotRun
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.task import reasoning_prompt
from evaluation.tasks import TASKS


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    from adapters.backbone import TESTBED

    engine = TorchEngine(Backbone.load(str(TESTBED), device="cpu", dtype=torch.float32))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(engine: TorchEngine) -> list[tuple[int, ...]]:
    examples = TASKS["alchemy"].examples("search", 8)
    return [engine.backbone.chat_ids(reasoning_prompt(example)) for example in examples]


def write(engine: TorchEngine, prompts: list[tuple[int, ...]], budget: Budget | None, count: int = 100) -> list[Completion]:
    policy = DecodingPolicy(budget=budget)
    return engine.complete([GenerationRequest(ids, None, count, policy=policy) for ids in prompts])


def trace_tokens(engine: TorchEngine, text: str) -> int:
    return len(engine.backbone.encode(text.partition("Answer:")[0]))


@pytest.mark.parametrize("cap", [0, 1, 6, 7, 8, 13, 90])
def test_a_cap_in_the_engine_writes_what_the_cap_in_two_calls_writes(
    engine: TorchEngine, prompts: list[tuple[int, ...]], cap: int
) -> None:
    budget = Budget(max_trace_tokens=cap)
    plain = budget.complete(engine, engine.backbone, [GenerationRequest(ids) for ids in prompts])
    assert [found.text.rstrip("\n") for found in write(engine, prompts, budget)] == [found.text for found in plain]


def test_an_ignored_end_in_the_engine_is_the_ignored_end_of_two_calls(
    engine: TorchEngine, prompts: list[tuple[int, ...]]
) -> None:
    budget = Budget(max_trace_tokens=60, num_ignored_ends=1)
    plain = budget.complete(engine, engine.backbone, [GenerationRequest(ids) for ids in prompts])
    found = write(engine, prompts, budget)
    for one, two in zip(found, plain, strict=True):
        assert one.text.startswith(two.trace.text)
        # A cue that the model wrote within a line stands there; in two calls it is moved to a line of its own.
        assert one.text.rstrip("\n") == two.text or one.text[len(two.trace.text) - 1] != "\n"
    assert [one.text for one in found] != [one.text for one in write(engine, prompts, None)]


def test_the_answer_keeps_its_tokens_when_the_reply_is_short(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    budget = Budget(max_trace_tokens=90, max_answer_tokens=8)
    for found in write(engine, prompts, budget, count=20):
        assert trace_tokens(engine, found.text) <= 20 - 8 - 3 + 1  # three tokens of the forced end; one more for its line
        assert "Answer:" in found.text and len(found.token_ids) <= 20


def test_a_reply_without_room_for_a_trace_is_an_answer(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    for found in write(engine, prompts, Budget(max_trace_tokens=90), count=6):
        assert found.text.startswith("Answer:") and len(found.token_ids) <= 6


def test_an_answer_that_has_used_up_its_tokens_ends_by_length(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    for found in write(engine, prompts, Budget(max_trace_tokens=90, max_answer_tokens=2)):
        assert found.finish_reason == "length"
        assert len(engine.backbone.encode(found.text.partition("Answer:")[2])) == 2


def test_a_capped_reply_is_over_with_its_answer_line(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    # Cut early, this model goes on with its trace behind the answer: the cap would not hold.
    line, lines = (write(engine, prompts, Budget(max_trace_tokens=7, answer_is_line=flag)) for flag in (True, False))
    for short, long in zip(line, lines, strict=True):
        assert long.text.startswith(short.text)
    assert all(found.finish_reason == "stop" and found.text.count("Answer:") == 1 for found in line)
    assert any(found.text.count("Answer:") > 1 for found in lines)


def test_blank_lines_behind_the_end_are_not_the_answers_line(engine: TorchEngine) -> None:
    trace, encode = Trace(engine.backbone.decode, "</think>"), engine.backbone.encode
    for token in encode("x</think>"):
        trace.take(token)
    for token in encode("\n\n"):
        trace.take(token)
        assert not trace.is_open and not trace.answer_has_line_end
    for token in encode("Answer"):
        trace.take(token)
    assert not trace.answer_has_line_end
    for token in encode("\n"):
        trace.take(token)
    assert trace.answer_has_line_end


def test_a_reply_that_would_be_over_without_an_answer_is_asked_for_it(
    engine: TorchEngine, prompts: list[tuple[int, ...]]
) -> None:
    stop = min(engine.backbone.stop_ids)
    row = CompiledBudget.of(Budget(max_trace_tokens=9), engine.backbone, "Answer:").for_row(60)
    trace = Trace(engine.backbone.decode, "Answer:")
    trace.take(engine.backbone.encode("x")[0])
    newline, cue, colon = engine.backbone.encode("\nAnswer:")
    assert row.force(cue, trace) == cue
    assert row.force(stop, trace) == newline
    for token, following in ((newline, cue), (cue, colon)):
        trace.take(token)
        row.take(token, trace)
        assert row.force(stop, trace) == following
    trace.take(colon)
    row.take(colon, trace)
    assert row.force(stop, trace) == stop


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_no_trace_ends_below_its_minimum(engine: TorchEngine, prompts: list[tuple[int, ...]], temperature: float) -> None:
    policy = DecodingPolicy(budget=Budget(min_trace_tokens=40), temperature=temperature)
    asked = [GenerationRequest(ids, None, 100, seed=seed, policy=policy) for seed, ids in enumerate(prompts)]
    for found in engine.complete(asked):
        assert len(found.token_ids) > 40 and trace_tokens(engine, found.text) >= 40


def test_an_end_that_is_spelled_in_other_tokens_is_held_back_at_its_last(engine: TorchEngine) -> None:
    encode, logits_V = engine.backbone.encode, torch.zeros(engine.backbone.embeddings.num_embeddings)
    row = CompiledBudget.of(Budget(min_trace_tokens=40), engine.backbone, "Answer:").for_row(100)
    trace, (colon,) = Trace(engine.backbone.decode, "Answer:"), encode(":")
    for char in "so Answer":
        assert row.adjust(logits_V, trace)[colon] == 0
        trace.take(encode(char)[0])
    assert row.adjust(logits_V, trace)[colon] == -torch.inf


def test_an_end_within_a_line_is_held_back_with_the_space_before_it(engine: TorchEngine) -> None:
    (bare,), (spaced,) = engine.backbone.encode("rot"), engine.backbone.encode(" rot")
    row = CompiledBudget.of(Budget(min_trace_tokens=5), engine.backbone, "rot:").for_row(100)
    held_V = row.adjust(torch.zeros(engine.backbone.embeddings.num_embeddings), Trace(engine.backbone.decode, "rot:"))
    assert bare != spaced and bool(held_V[[bare, spaced]].isneginf().all())


def test_a_minimum_above_what_the_reply_leaves_is_the_cap(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    budget = Budget(max_trace_tokens=60, min_trace_tokens=50, max_answer_tokens=8)
    assert all("Answer:" in found.text for found in write(engine, prompts, budget, count=30))


def test_a_ramp_ends_the_line_before_the_cap(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    hard, soft = (write(engine, prompts, Budget(max_trace_tokens=12, ramp=ramp)) for ramp in (0, 200))
    (cue, _) = engine.backbone.encode("Answer:")
    # The forced end takes its own line's beginning with it, behind the cap.
    assert max(found.token_ids.index(cue) for found in hard) == 13
    assert max(found.token_ids.index(cue) for found in soft) <= 12


def test_a_ramp_rises_from_nine_tenths_of_the_cap(engine: TorchEngine) -> None:
    encode, logits_V = engine.backbone.encode, torch.zeros(engine.backbone.embeddings.num_embeddings)
    row = CompiledBudget.of(Budget(max_trace_tokens=100, ramp=5), engine.backbone, "Answer:").for_row(1000)
    trace, (newline, cue, _) = Trace(engine.backbone.decode, "Answer:"), encode("\nAnswer:")
    found = []
    for _ in range(100):
        adjusted_V = row.adjust(logits_V, trace)
        found.append((float(adjusted_V[newline]), float(adjusted_V[cue])))
        trace.take(encode("x")[0])
    assert found[:90] == [(0, 0)] * 90
    assert found[90:] == [(pytest.approx(place / 2), 0) for place in range(1, 11)]
    trace = Trace(engine.backbone.decode, "Answer:")
    for _ in range(94):
        trace.take(newline)
    # Where a line begins, the answer may.
    adjusted_V = row.adjust(logits_V, trace)
    assert (float(adjusted_V[newline]), float(adjusted_V[cue])) == (0, 2.5)


def test_a_ramp_without_room_for_a_trace_is_a_plain_cap(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    for cap, count in ((0, 60), (90, 6)):
        hard, soft = (write(engine, prompts, Budget(max_trace_tokens=cap, ramp=ramp), count) for ramp in (0, 5))
        assert soft == hard


def test_a_reply_that_began_with_an_answer_is_left_alone(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    begun = tuple(engine.backbone.encode("Answer:"))
    asked = [
        GenerationRequest(prompts[0], None, 20, begun_ids=begun, policy=DecodingPolicy(budget=budget))
        for budget in (None, Budget(max_trace_tokens=0, min_trace_tokens=0), Budget(min_trace_tokens=30))
    ]
    plain, capped, at_least = (found.token_ids for found in engine.complete(asked))
    assert capped == at_least == plain[: len(capped)] and engine.backbone.decode(capped[-1:]) == "\n"


def test_what_a_reply_began_with_counts_as_trace(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    # Cut by its budget, and by what a short reply leaves of it.
    for budget, count in ((Budget(max_trace_tokens=9), 50), (Budget(max_trace_tokens=90, max_answer_tokens=8), 20)):
        policy = DecodingPolicy(budget=budget)
        whole = engine.complete([GenerationRequest(prompts[0], None, count, policy=policy)])[0].token_ids
        begun = GenerationRequest(prompts[0], None, count - 4, begun_ids=whole[:4], policy=policy)
        assert whole[4:] == engine.complete([begun])[0].token_ids


@pytest.mark.parametrize(
    ("written", "closing"),
    [("", "Answer:"), ("rot 3", "\nAnswer:"), ("rot 3\n", "Answer:"), ("rot 3\nAnswer", ":"), ("so A", "\nAnswer:")],
)
def test_a_forced_end_stands_on_a_line_of_its_own(engine: TorchEngine, written: str, closing: str) -> None:
    trace = Trace(engine.backbone.decode, "Answer:")
    for token in engine.backbone.encode(written):
        trace.take(token)
    assert trace.closing == closing


def test_the_end_is_seen_however_it_is_tokenized(engine: TorchEngine) -> None:
    trace = Trace(engine.backbone.decode, "Answer:")
    for char in "so: Answer":
        trace.take(engine.backbone.encode(char)[0])
        assert trace.is_open
    trace.take(engine.backbone.encode(":")[0])
    assert not trace.is_open and trace.num_answer_tokens == 0
    trace.take(engine.backbone.encode("X")[0])
    assert trace.num_answer_tokens == 1


def test_a_cue_whose_first_token_begins_other_words_is_refused_at_load(backbone: Backbone) -> None:
    # The tiny vocabulary spells Answer as A and nswer: to mask A would forbid every word in A.
    engine = TorchEngine(backbone)
    engine.load("capped", Profile(policy=DecodingPolicy(budget=Budget(max_trace_tokens=5))))
    with pytest.raises(CannotRun, match="`budget`.*'A', with which other words begin"):
        engine.load("held", Profile(policy=DecodingPolicy(budget=Budget(min_trace_tokens=5))))
    assert engine.loaded == ("capped",)
    engine.close()


def test_an_end_of_several_tokens_is_forced_whole(engine: TorchEngine, prompts: list[tuple[int, ...]]) -> None:
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=3), trace_end="</think>")
    assert CompiledBudget.of(Budget(), engine.backbone, "</think>").num_end_tokens > 5
    found = engine.complete([GenerationRequest(prompts[0], None, 80, policy=policy)])[0]
    assert found.text.startswith("rot 3:\n</think>")


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [({"max_trace_tokens": 4, "min_trace_tokens": 5}, "not longer than its cap"), ({"ramp": 2.0}, "rises up to a cap")],
)
def test_a_budget_that_contradicts_itself_is_refused(wrong: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Budget.model_validate(wrong)


def test_two_calls_refuse_what_only_the_engine_does(engine: TorchEngine) -> None:
    with pytest.raises(ValueError, match="Load a profile with this policy"):
        Budget(max_trace_tokens=4, min_trace_tokens=2).complete(engine, engine.backbone, [])
