"""CoT-decoding: branches, margins over the answer alone, the weighted vote."""

from __future__ import annotations

import math

import pytest
from scripted_engine import Reply, ScriptedEngine

from adapters.backbone import Backbone
from engine.decoding.cot_decoding import Branch, CoTDecoding, Decoded, margin
from engine.engine import Completion, GenerationRequest, TokenLogprob
from engine.torch_engine import TorchEngine
from evaluation.task import Example, comparable, direct_prompt
from evaluation.tasks import FAMILIES

ANSWERS = {"A": ("0", 0.6), "x": ("7", 0.8), "y": ("7.", 0.7), "z": ("9", 0.9)}


def script(example: Example, begun: str) -> Reply:
    """At once it says 0; behind the tokens x and y it finds 7, behind z 9."""
    if begun.endswith("Answer:"):
        answer, p = ANSWERS[begun[0]]
        return Reply(f" {answer}\n more", p)
    if not begun:
        return Reply("Answer: 0", 0.5, ("x", "y", "z"))
    return Reply("Answer: 0"[len(begun) :]) if begun[0] == "A" else Reply(f" 3 + 4 = {ANSWERS[begun[0]][0]}\n", 0.99)


@pytest.fixture
def examples() -> list[Example]:
    return FAMILIES["arithmetic"].examples("search", 3)


def decode(engine: ScriptedEngine, backbone: Backbone, examples: list[Example]) -> list[Decoded]:
    asked = [GenerationRequest(backbone.chat_ids(direct_prompt(example))) for example in examples]
    return CoTDecoding(num_branches=4).complete(engine, backbone, asked)


def test_every_branch_begins_with_another_of_the_likeliest_tokens(backbone: Backbone, examples: list[Example]) -> None:
    found = decode(ScriptedEngine(backbone, examples, {None: script}), backbone, examples)
    for decoded in found:
        assert [branch.answer for branch in decoded.branches] == ["0", "7", "7.", "9"]
        assert decoded.greedy.answer == "0" and decoded.branches[1].trace == "x 3 + 4 = 7\n"


def test_the_margin_is_over_the_answer_alone(backbone: Backbone, examples: list[Example]) -> None:
    decoded = decode(ScriptedEngine(backbone, examples, {None: script}), backbone, examples)[0]
    # The likeliest token has p, the next (1 - p) / 2; the trace's tokens are surer, and the line end is no part of the answer.
    expected = [p - (1 - p) / 2 for _, p in ANSWERS.values()]
    assert [branch.margin for branch in decoded.branches] == pytest.approx(expected)


def test_the_line_end_is_no_part_of_the_margin(backbone: Backbone) -> None:
    ids = tuple(backbone.encode(" 7\n"))
    sure, torn = ((TokenLogprob(1, math.log(p)), TokenLogprob(2, math.log(1 - p))) for p in (0.9, 0.5))
    answer = Completion(" 7", ids, (0.0,) * len(ids), "stop", 1, (*[sure] * (len(ids) - 1), torn))
    assert margin(backbone, answer) == pytest.approx(0.8)


def test_branches_that_say_the_same_vote_together(backbone: Backbone, examples: list[Example]) -> None:
    decoded = decode(ScriptedEngine(backbone, examples, {None: script}), backbone, examples)[0]
    assert decoded.best.answer == "9"
    assert decoded.vote(comparable) == "7"
    assert decoded.vote(str) == "9"


def test_the_branches_of_all_prompts_share_their_batches(backbone: Backbone, examples: list[Example]) -> None:
    engine = ScriptedEngine(backbone, examples, {None: script})
    decode(engine, backbone, examples)
    assert engine.num_calls == 3


def test_a_branch_that_is_over_with_its_first_token_is_asked_for_its_answer(backbone: Backbone, examples: list[Example]) -> None:
    def ends(example: Example, begun: str) -> Reply:
        return Reply(" 5\n") if begun.endswith("Answer:") else Reply("x", 0.9, ("<|im_end|>",))

    engine = ScriptedEngine(backbone, examples, {None: ends})
    asked = GenerationRequest(backbone.chat_ids(direct_prompt(examples[0])))
    branch = CoTDecoding(num_branches=2).complete(engine, backbone, [asked])[0].branches[1]
    assert (branch.trace, branch.answer) == ("", "5")


def test_an_empty_answer_has_no_margin_and_no_vote(backbone: Backbone, examples: list[Example]) -> None:
    mute = ScriptedEngine(backbone, examples, {None: lambda example, begun: Reply("\n")})
    decoded = decode(mute, backbone, examples)[0]
    assert all(math.isnan(branch.margin) for branch in decoded.branches)
    assert decoded.vote(comparable) == "" and decoded.best is decoded.greedy


def test_the_first_branch_of_a_real_engine_is_greedy(backbone: Backbone, examples: list[Example]) -> None:
    engine = TorchEngine(backbone)
    asked = [GenerationRequest(backbone.chat_ids(direct_prompt(example)), max_new_tokens=8) for example in examples]
    found = CoTDecoding(3, max_trace_tokens=8, max_answer_tokens=4).complete(engine, backbone, asked)
    for decoded, greedy in zip(found, engine.complete(asked), strict=True):
        assert decoded.greedy.trace == greedy.text
        assert all(0 <= branch.margin <= 1 for branch in decoded.branches if branch.answer)
    engine.close()


def test_a_single_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 20 branches, but got 1"):
        CoTDecoding(num_branches=1)


def test_ties_go_to_the_likelier_first_token() -> None:
    decoded = Decoded((Branch("", "a", 0.5), Branch("", "b", 0.5)))
    assert decoded.vote(str) == decoded.best.answer == "a"
