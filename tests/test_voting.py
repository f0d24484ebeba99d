"""Several sets of soft thoughts: each reads another prompt, and the majority of what they answer is what is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from fitted import fitted

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.decoding.cot_decoding import CoTDecoding
from engine.engine import Completion, Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from engine.voting import elected, voters_of, winner

QUESTION = "Start with 12. Add 5."


def thinker(backbone: Backbone, static: bool = False) -> SoftCoT:
    spec = SoftCoTSpec(num_thoughts=3, assistant_layers=1, num_chains=3, gate=0.5, static=static)
    return fitted(SoftCoT(spec), backbone, 1)


@pytest.mark.parametrize("static", [False, True])
def test_every_set_of_thoughts_is_another_and_is_stored(backbone: Backbone, tmp_path: Path, static: bool) -> None:
    profile, ids = Profile((thinker(backbone, static),)), backbone.chat_ids(QUESTION)
    with torch.no_grad():
        prompts = [profile.transform(backbone, ids, chain) for chain in range(3)]
    assert len({prompt.ids for prompt in prompts}) == 1
    sets = torch.stack([prompt.soft_KH for prompt in prompts if prompt.soft_KH is not None])
    assert min(float((sets[one] - sets[two]).norm()) for one, two in ((0, 1), (0, 2), (1, 2))) > 0.1
    profile.save(tmp_path / "saved")
    with torch.no_grad():
        again = [Profile.load(tmp_path / "saved").transform(backbone, ids, chain).soft_KH for chain in range(3)]
    assert torch.equal(torch.stack([one for one in again if one is not None]), sets)
    with pytest.raises(RefusedAdapter, match="counted from 0 to 2 here, but 3"):
        profile.transform(backbone, ids, 3)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Answer: 4", "so\nAnswer: 5.", "Answer:  5\nand more"], 1),
        (["Answer: Ear  Diseases", "Answer: eye", "Answer: ear diseases"], 0),
        (["Answer: 1", "Answer: 2"], 0),
        (["Answer: 1", "Answer: ten-fold", 'Answer: "Ten fold".'], 1),
        (["nothing", "Answer: 2"], 1),
        (["nothing", "Answer:", "nothing at all"], 0),
    ],
)
def test_the_majority_wins_and_the_earlier_of_two_alike(texts: Sequence[str], expected: int) -> None:
    assert winner(texts) == expected
    replies = [Completion(text, (), (), "stop", 1) for text in texts]
    assert elected(replies) is replies[expected]


def test_what_holds_no_answer_is_written_once() -> None:
    request = GenerationRequest((1,), "p")
    assert [voter.chain for voter in voters_of(request, 3)] == [0, 1, 2]
    for alone in (
        GenerationRequest((1,), "p", chain=2),
        GenerationRequest((1,), "p", begun_ids=(5,)),
        GenerationRequest((1,), "p", stop=("Answer:",)),
    ):
        assert voters_of(alone, 3) == [alone]
    assert voters_of(request, 1) == [request]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a reply is taken to answer, by its text: a random backbone writes no answer line."""
    found: dict[str, str] = {}
    monkeypatch.setattr("engine.voting.first_answer", lambda text: found.get(text))
    return found


def test_a_profile_with_several_sets_is_served_by_majority(backbone: Backbone, answers: dict[str, str]) -> None:
    engine = TorchEngine(backbone)
    engine.load("three", Profile((thinker(backbone),)))
    ids = backbone.chat_ids(QUESTION)
    alone = engine.complete([GenerationRequest(ids, "three", max_new_tokens=8, chain=chain) for chain in range(3)])
    assert len({one.token_ids for one in alone}) == 3
    answers |= {alone[0].text: "4", alone[1].text: "5", alone[2].text: "5"}
    asked = GenerationRequest(ids, "three", max_new_tokens=8)
    (voted,) = engine.complete([asked])
    assert voted.token_ids == alone[1].token_ids

    async def streamed() -> list[int]:
        async with aclosing(engine.generate(asked)) as deltas:  # type: ignore[type-var]
            return [delta.token_id async for delta in deltas if delta.token_id is not None]

    assert tuple(asyncio.run(streamed())) == alone[1].token_ids
    until = time.monotonic() + 10
    while engine.stats().running and time.monotonic() < until:  # rows of other sets leave at the loop's next step
        time.sleep(0.01)
    assert engine.stats().running == 0
    engine.close()


def test_a_client_that_leaves_frees_the_rows_of_all_sets(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    engine.load("three", Profile((thinker(backbone),)))
    asked = GenerationRequest(backbone.chat_ids(QUESTION), "three", max_new_tokens=400)

    async def leave() -> None:
        async def read() -> None:
            async for _ in engine.generate(asked):
                pass

        task = asyncio.create_task(read())
        while engine.stats().running < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(500):
            if not engine.stats().running:
                return
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert engine.stats().running == 0
    engine.unload("three")
    engine.close()


def test_branches_are_read_under_one_set_and_under_the_first_unless_another_is_named(backbone: Backbone) -> None:
    engine, branching = TorchEngine(backbone), CoTDecoding(2, max_trace_tokens=6, max_answer_tokens=2)
    engine.load("three", Profile((thinker(backbone),)))
    asked = [GenerationRequest(backbone.chat_ids(QUESTION), "three", chain=chain) for chain in (None, 0, 1)]
    found, written = [], [0]
    for one in asked:
        found += branching.complete(engine, backbone, [one])
        written.append(engine.stats().generated_tokens["three"])
    assert found[0] == found[1] != found[2]
    assert written[1] == written[2] - written[1]  # nothing is written under all sets
    engine.close()


def test_likelihood_is_read_under_the_first_set(backbone: Backbone) -> None:
    engine, ids = TorchEngine(backbone), backbone.chat_ids(QUESTION)
    softcot = thinker(backbone)
    engine.load("three", Profile((softcot,)))
    (scores,) = engine.score([Continuation(ids, (7,))], "three")
    with torch.no_grad():
        prompt = Profile((softcot,)).transform(backbone, ids)
        logits_V = backbone.model(inputs_embeds=prompt.embed(backbone.embeddings)[None]).logits[0, -1]
    assert scores[0] == pytest.approx(float(logits_V.log_softmax(-1)[7]), abs=1e-4)
    engine.close()
