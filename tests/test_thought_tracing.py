"""Thought tracing: a mind that knows gains by it, one that guesses does not, and no thought is weighed by what it was told."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fitted import fitted_lora
from pydantic import ValidationError
from small_releases import write_release
from story_mind import StoryMind
from test_cli import ended

from adapters.backbone import Backbone
from engine.decoding.narrowing import Narrowing
from engine.decoding.thought_tracing import ThoughtTracing, Traced, run_rounds
from engine.decoding.tracing import Tracing
from engine.decoding.tracing_prompts import listed, sentences
from engine.engine import Completion, Continuation, Delta, GenerationRequest
from engine.errors import NotNarrower
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine
from evaluation.tasks.belief import BELIEF
from evaluation.thoughts import WAYS, Thoughts, about_beliefs, compare_ways
from service.decoding import narrowed
from service.errors import ApiError
from service.openai_shapes import ChatRequest
from service.thoughts import Tracer, traced

FIRST = [example for example in BELIEF.examples("search", 96, seed=5) if example.id.endswith("/first")]
STORY = (
    "Box and bag stand here. Anna puts the key in the box. Anna walks out. Ben hides the key. "
    "Anna comes back. Anna opens the box. Ben laughs."
)
QUESTION = "Where does Anna think the key is?"


@pytest.fixture
def backbone(session_backbone: Backbone) -> Backbone:
    """With a context for long prompts: scripted minds alone read them."""
    model = copy.deepcopy(session_backbone.model)
    model.config.max_position_embeddings = 8192
    return replace(session_backbone, model=model)


class Anna(StoryMind):
    """Tells three thoughts apart by what Anna does: she opens the box."""

    def _writes(self, prompt: str) -> str:
        if "Give only the name" in prompt:
            return "Anna."
        if "numbered list" in prompt:
            return "1. The key is in the box\n2. A bag holds the key now\n3. Nobody knows anything at all"
        if "think now" in prompt:
            return prompt.split("thought before: ")[1].splitlines()[0]
        return "Anna sees it."

    def _likes(self, prompt: str, said: str) -> float:
        if "Where does Anna" in prompt:
            return 0.0
        return super()._likes(prompt, said)


def by_the_box(thought: str, action: str) -> str:
    if "opens" not in action:
        return "c"
    return "a" if "in the box" in thought else "f"


def trace(mind: StoryMind, spec: Tracing | None = None, seed: int = 0) -> Traced:
    asking = ThoughtTracing(mind.backbone, spec or Tracing(num_hypotheses=3), None, seed)
    return run_rounds(mind, [asking.rounds(STORY, QUESTION)])[0]


def compared(mind: StoryMind) -> Thoughts:
    return compare_ways(mind, mind.backbone, None, FIRST)


def test_a_mind_that_knows_the_belief_gains_by_both_ways(backbone: Backbone) -> None:
    found = compared(StoryMind(backbone, FIRST))
    assert found.plain.accuracy == 0.5  # it answers by where the thing is
    for name in WAYS:
        change = found.ways[name].right
        assert change is not None and found.ways[name].accuracy == 1.0 and change.low > 0
    assert set(json.loads(json.dumps(found.as_dict()))["ways"]) == {"plain", *WAYS}
    spent = [found.plain.tokens, *(found.ways[name].tokens for name in WAYS)]
    assert spent == sorted(spent) and spent[2] > 5 * spent[1] / 2


def test_a_mind_that_guesses_gains_nothing(backbone: Backbone) -> None:
    found = compared(StoryMind(backbone, FIRST, knows=False))
    for name in WAYS:
        change = found.ways[name].right
        assert change is not None and change.low <= 0


def test_weights_follow_what_the_agent_did(backbone: Backbone) -> None:
    found = trace(Anna(backbone, (), judge=by_the_box))
    assert [step.action for step in found.steps] == [
        "Anna puts the key in the box.",
        "Anna walks out.",
        "Anna comes back.",
        "Anna opens the box.",
        None,
    ]
    assert found.hypotheses[2].weights == pytest.approx((1 / 3,) * 3)  # nothing told them apart so far
    opened = found.hypotheses[3]
    assert set(opened.texts) == {"The key is in the box"} and opened.weights == pytest.approx((1 / 3,) * 3)  # drawn anew
    assert found.story.endswith("After: Ben laughs.\nAnna thinks: The key is in the box")


def test_a_judge_of_constant_verdicts_changes_no_weight(backbone: Backbone) -> None:
    for verdict in "abcdef":
        found = trace(Anna(backbone, (), judge=lambda thought, action, said=verdict: said))  # type: ignore[misc]
        assert all(held.weights == pytest.approx((1 / 3,) * 3) for held in found.hypotheses)
        assert len(set(found.hypotheses[-1].texts)) == 3


def test_a_judge_without_a_verdict_is_left_out_and_not_read_as_very_unlikely(backbone: Backbone) -> None:
    def silent_on_the_box(thought: str, action: str) -> str:
        return "" if "in the box" in thought else "c"

    found = trace(Anna(backbone, (), judge=silent_on_the_box))
    assert found.hypotheses[-1].weights == pytest.approx((1 / 3,) * 3)


def test_the_action_that_weighs_a_thought_is_not_in_the_prompt_that_made_it(backbone: Backbone) -> None:
    mind = Anna(backbone, ())
    trace(mind)
    made = [prompt for prompt in mind.prompts if "think now" in prompt]
    assert len(made) == 4 * 3
    for place, action in enumerate(("Anna walks out.", "Anna comes back.", "Anna opens the box.")):
        assert all(action not in prompt for prompt in made[: 3 * (place + 1)])
        assert all(action in prompt for prompt in made[3 * (place + 1) :])
    # Nor in what the agent perceives before it.
    seen = [prompt for prompt in mind.prompts if "see or hear" in prompt]
    assert "Anna opens the box." not in seen[3].partition("What happens now")[2]


def test_thoughts_that_say_the_same_are_drawn_in_other_words(backbone: Backbone) -> None:
    class Alike(Anna):
        def _writes(self, prompt: str) -> str:
            if "in other words" in prompt:
                return "It lies where she left it"
            return "1. The key is in the box\n2. the key is in the box." if "numbered list" in prompt else super()._writes(prompt)

        def _completed(self, request: GenerationRequest) -> Completion:
            if "in other words" in backbone.decode(request.prompt_ids):
                drawn.append((request.temperature, request.seed))
            return super()._completed(request)

    drawn: list[tuple[float | None, int | None]] = []
    found = trace(Alike(backbone, ()), Tracing(num_hypotheses=2))
    assert [held.texts[0] for held in found.hypotheses[:2]] == ["The key is in the box", "It lies where she left it"]
    assert {temperature for temperature, _ in drawn} == {1.0} and len({seed for _, seed in drawn}) == len(drawn) > 1


def test_what_is_drawn_anew_is_the_same_again_under_a_seed(backbone: Backbone) -> None:
    found, again = ([trace(Anna(backbone, (), judge=by_the_box), seed=seed) for seed in range(8)] for _ in range(2))
    assert found == again and len({one.story for one in found}) > 1


def test_a_verdict_is_the_probability_of_its_letter_after_the_cue(backbone: Backbone) -> None:
    class Told(Anna):
        def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
            cues.update(one.ids[: one.scored_from] for one in continuations)
            return super().score(continuations, profile)

    cues = set[tuple[int, ...]]()
    trace(Told(backbone, ()))
    assert cues == {tuple(backbone.encode("Answer:"))}


def test_several_stories_traced_together_are_traced_as_each_alone(backbone: Backbone) -> None:
    mind = StoryMind(backbone, FIRST[:3])
    asking = ThoughtTracing(backbone)
    parts = [(" ".join(sentences(one.question)[:-1]), sentences(one.question)[-1]) for one in FIRST[:3]]
    together = run_rounds(mind, [asking.rounds(*part) for part in parts])
    assert together == [run_rounds(mind, [asking.rounds(*part)])[0] for part in parts]
    assert all(found.is_traced for found in together)


def test_what_names_nobody_or_lists_nothing_leaves_the_story_as_it_is(backbone: Backbone) -> None:
    class Mute(Anna):
        def _writes(self, prompt: str) -> str:
            return "" if "name" in prompt else "no list"

    assert trace(Mute(backbone, ())) == Traced(STORY, why="nobody was named whose thoughts are asked about")

    class Listless(Anna):
        def _writes(self, prompt: str) -> str:
            return "Anna" if "name" in prompt else "no list"

    found = trace(Listless(backbone, ()))
    assert not found.is_traced and found.story == STORY and found.agent == "Anna"


def test_what_does_not_fit_into_the_context_leaves_the_story_as_it_is(backbone: Backbone, session_backbone: Backbone) -> None:
    cut = trace(Anna(session_backbone, ()))  # 512 tokens
    assert cut == Traced(STORY, why=cut.why) and "context" in cut.why
    assert trace(Anna(backbone, ())).is_traced


def test_more_steps_than_allowed_are_one(backbone: Backbone) -> None:
    found = trace(Anna(backbone, ()), Tracing(num_hypotheses=3, max_steps=2))
    assert [step.action for step in found.steps] == ["Anna puts the key in the box.", None]
    assert found.steps[1].state.startswith("Anna walks out.") and found.steps[1].state.endswith("Ben laughs.")


def test_a_numbered_list_is_read_and_what_is_none_is_not() -> None:
    assert listed("Sure:\n1. one\n 2) two\n3: three\n4. four", 3) == ["one", "two", "three"]
    assert listed("one, two and three", 3) == []


def test_a_real_engine_runs_all_rounds(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    asking = ThoughtTracing(backbone, Tracing(num_hypotheses=2, max_steps=2, max_thought_tokens=4))
    assert run_rounds(engine, [asking.rounds("Anna puts it in.", "Where?")])[0].story.startswith("Anna")


def test_only_questions_about_a_mind_are_compared() -> None:
    kept = about_beliefs(BELIEF.examples("search", 8, seed=5))
    assert [one.id.rpartition("/")[2] for one in kept] == ["first", "second"] * 2


# As an option of a request.


def chat(**decoding: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=({"role": "user", "content": f"{STORY} {QUESTION}"},), decoding=decoding)  # type: ignore[arg-type]


def test_tracing_is_off_unless_asked_for_and_refused_where_the_release_does_not_declare_it() -> None:
    declared = DecodingPolicy(tracing=Tracing(num_hypotheses=3))
    assert chat().decoding.of(declared).tracing is None and chat(tracing=False).decoding.of(declared).tracing is None
    assert chat(tracing=True).decoding.of(declared).tracing == Tracing(num_hypotheses=3)
    assert chat(tracing={"max_steps": 2}).decoding.of(declared).tracing == Tracing(num_hypotheses=3, max_steps=2)
    with pytest.raises(NotNarrower, match="does not declare with `tracing` that its own does"):
        chat(tracing=True).decoding.of(DecodingPolicy())
    with pytest.raises(NotNarrower, match=r"tracing.num_hypotheses 4 where the release has 3"):
        Narrowing(tracing={"num_hypotheses": 4}).of(declared)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="give one of them"):
        chat(tracing=True, branches={})


def read(mind: StoryMind, content: str = f"{STORY} {QUESTION}", role: str = "user") -> list[Delta]:
    turns = [{"role": role, "content": content}]
    return written(mind, traced(mind, mind.generate, mind.backbone, Tracing(num_hypotheses=3), turns))


def written(mind: StoryMind, tracer: Tracer) -> list[Delta]:
    async def all_of_it() -> list[Delta]:
        return [delta async for delta in tracer.generate(GenerationRequest(mind.backbone.chat_ids(tracer.turns), None, 20))]

    return asyncio.run(all_of_it())


def test_the_reply_is_asked_of_the_story_with_its_thoughts_and_every_token_is_counted(backbone: Backbone) -> None:
    mind = Anna(backbone, (), judge=by_the_box)
    deltas = read(mind)
    assert f"After: Ben laughs.\nAnna thinks: The key is in the box\n{QUESTION}" in mind.prompts[-1]
    assert "".join(delta.text for delta in deltas) == "Anna sees it." and deltas[-1].finish_reason == "stop"
    assert sum(delta.token_id is not None for delta in deltas) > 10 * len(backbone.encode("Anna sees it."))


def test_all_that_a_tenants_reply_asks_is_kept_from_other_tenants(backbone: Backbone) -> None:
    mind, salts = Anna(backbone, (), judge=by_the_box), list[str]()

    def rows(request: GenerationRequest) -> AsyncIterator[Delta]:
        salts.append(request.cache_salt)
        return mind.generate(request)

    turns = [{"role": "user", "content": f"{STORY} {QUESTION}"}]
    asked = GenerationRequest(backbone.chat_ids(turns), None, 20, cache_salt="one")
    tracer = traced(mind, rows, backbone, Tracing(num_hypotheses=3), turns)

    async def all_of_it() -> list[Delta]:
        return [delta async for delta in tracer.generate(asked)]

    asyncio.run(all_of_it())
    assert len(salts) > 2 and set(salts) == {"one"}


def test_a_reply_says_whether_its_story_was_followed_and_why_not(backbone: Backbone) -> None:
    class Listless(Anna):
        def _writes(self, prompt: str) -> str:
            return "no list" if "numbered list" in prompt else super()._writes(prompt)

    told = []
    for mind in (Anna(backbone, ()), Listless(backbone, ())):
        turns = [{"role": "user", "content": f"{STORY} {QUESTION}"}]
        tracer = traced(mind, mind.generate, mind.backbone, Tracing(num_hypotheses=3), turns)
        assert tracer.told == {}
        assert written(mind, tracer)[-1].finish_reason == "stop"
        told.append(tracer.told["tracing"])
    reason = "no numbered list of thoughts was written; the plain question was answered"
    assert told == [{"traced": True, "agent": "Anna"}, {"traced": False, "reason": reason}]


@pytest.mark.parametrize(
    ("content", "role"), [("Tell me a story.", "user"), (QUESTION, "user"), (f"{STORY} {QUESTION}", "assistant")]
)
def test_a_request_without_a_story_and_its_question_is_answered_by_a_sentence(
    backbone: Backbone, content: str, role: str
) -> None:
    with pytest.raises(ApiError) as caught:
        read(Anna(backbone, ()), content, role)
    assert caught.value.status == 400 and "Thought tracing reads" in caught.value.message


def test_a_refused_request_is_told_in_one_sentence_what_is_missing() -> None:
    with pytest.raises(ApiError) as caught:
        narrowed(DecodingPolicy(), chat(tracing=True).decoding)
    assert (caught.value.status, caught.value.param) == (400, "decoding") and "declare" in caught.value.message


def test_the_command_tells_all_ways_with_what_they_spent(
    testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path / "one", testbed, fitted_lora(testbed, 1), domain="icd10-chapter", protected=["grammar"])
    assert ended(("thoughts", "one", "--items", "8", "--hypotheses", "2", "--home", "home"), tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.count("plain:") == 2 and said.count("thought tracing:") == said.count("perspective filter:") == 2
    assert "against plain" in said and "tokens an item" in said


def test_a_policy_with_tracing_changes_no_row(backbone: Backbone) -> None:
    engine = TorchEngine(backbone)
    request = GenerationRequest(backbone.chat_ids("Who?"), None, 12)
    policy = DecodingPolicy(tracing=Tracing())
    assert engine.complete([replace(request, policy=policy)]) == engine.complete([request])
    assert not policy.interventions
