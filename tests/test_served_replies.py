"""Replies as a release has them sent: the winner of its branches, with all that they cost, beside replies of one row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.backbone import Backbone
from engine.decoding.answer import said
from engine.decoding.branches import Branches
from engine.decoding.budget import Budget
from engine.decoding.served import complete_as_served
from engine.engine import GenerationRequest
from engine.errors import CannotRun
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine
from evaluation.task import reasoning_prompt
from evaluation.tasks.alchemy import ALCHEMY
from service.decoding import branches_of
from service.errors import ApiError
from service.openai_shapes import CompletionRequest

BRANCHES = Branches(num_branches=3, max_trace_tokens=30, max_answer_tokens=8)


@pytest.fixture(scope="module")
def asked(testbed: Backbone) -> list[GenerationRequest]:
    examples = ALCHEMY.at_length(1).examples("select", 3)
    return [GenerationRequest(testbed.chat_ids(reasoning_prompt(one)), None, 60, temperature=0.0) for one in examples]


def test_a_policy_without_branches_is_what_the_engine_writes(testbed: Backbone, asked: list[GenerationRequest]) -> None:
    engine = TorchEngine(testbed)
    engine.load("capped", Profile(policy=DecodingPolicy(budget=Budget(max_trace_tokens=4))))
    both = [*asked, *(replace(one, profile="capped") for one in asked)]
    assert complete_as_served(engine, testbed, both) == engine.complete(both)


def test_branches_of_a_policy_are_those_that_a_request_would_get(testbed: Backbone, asked: list[GenerationRequest]) -> None:
    engine, policy = TorchEngine(testbed), DecodingPolicy(branches=BRANCHES)
    engine.load("branched", Profile(policy=policy))
    mixed = [asked[0], replace(asked[1], profile="branched"), asked[2]]
    plain, branched, last = complete_as_served(engine, testbed, mixed)
    assert [plain, last] == engine.complete([asked[0], asked[2]])
    (decoded,) = BRANCHES.within(testbed, policy, 60).complete(engine, testbed, [asked[1]])
    assert branched.text == BRANCHES.winner(decoded, said).text
    assert len(branched.token_ids) == len(branched.logprobs) > 2 * len(engine.complete([asked[1]])[0].token_ids)


def test_of_a_budget_branches_keep_the_limits_and_ignore_no_end(testbed: Backbone, asked: list[GenerationRequest]) -> None:
    engine, budget = TorchEngine(testbed), Budget(max_trace_tokens=20, num_ignored_ends=2)
    policy = DecodingPolicy(branches=BRANCHES, budget=budget)
    (found,) = complete_as_served(engine, testbed, [replace(asked[1], policy=policy)])
    (decoded,) = BRANCHES.within(testbed, policy, 60).complete(engine, testbed, [asked[1]])
    assert found.text == BRANCHES.winner(decoded, said).text
    assert engine.complete([replace(asked[1], policy=policy)])[0].text != engine.complete([asked[1]])[0].text


def test_branched_replies_in_one_batch_are_those_of_each_alone(testbed: Backbone, asked: list[GenerationRequest]) -> None:
    engine = TorchEngine(testbed)
    for name, votes in (("surest", "best"), ("most", "majority")):
        engine.load(name, Profile(policy=DecodingPolicy(branches=BRANCHES.model_copy(update={"vote": votes}))))
    mixed = [replace(one, profile=name) for one, name in zip(asked, ("surest", "most", "surest"), strict=True)]
    together = complete_as_served(engine, testbed, mixed)
    alone = [complete_as_served(engine, testbed, [one])[0] for one in mixed]
    assert [(one.text, one.token_ids) for one in together] == [(one.text, one.token_ids) for one in alone]
    assert len({one.token_ids for one in together}) == 3


def test_branches_that_no_answer_line_ends_are_refused_at_load(testbed: Backbone) -> None:
    with pytest.raises(CannotRun, match="`branches` are read by their"):
        TorchEngine(testbed).load("x", Profile(policy=DecodingPolicy(branches=BRANCHES, trace_end="</think>")))


def test_a_request_takes_its_release_s_branches_its_own_or_none() -> None:
    policy, few = DecodingPolicy(branches=BRANCHES), {"num_branches": 2}

    def found(**fields: object) -> Branches | None:
        return branches_of(policy, CompletionRequest.model_validate({"model": "m", "prompt": "p", **fields}))

    assert found() == found(temperature=0) == BRANCHES
    assert found(decoding={"branches": few}) == Branches(num_branches=2)
    assert found(decoding={"branches": False}, temperature=1) is None
    assert found(decoding={"tracing": True}) is None
    with pytest.raises(ApiError) as caught:
        found(temperature=0.7)
    assert (caught.value.status, caught.value.param) == (400, "temperature") and "ask for one reply" in caught.value.message
