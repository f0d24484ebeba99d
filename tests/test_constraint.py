"""A reply that is held to a grammar: whole it fits, cut it is the beginning of one that does."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from thinking_backbones import thinking_directory

from adapters.backbone import Backbone
from engine.constraint import MAX_COMPILED
from engine.decoding.budget import Budget
from engine.decoding.tip import SwitchPenalty
from engine.engine import Completion, GenerationRequest
from engine.errors import BadGrammar
from engine.grammar import Grammar
from engine.profile import DecodingPolicy
from engine.torch_engine import TorchEngine

CITY = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x y", "\u00e9"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMA = Grammar("json_schema", (json.dumps(CITY),))


@pytest.fixture(scope="module")
def engine(session_backbone: Backbone) -> TorchEngine:
    return TorchEngine(session_backbone)


def written(engine: TorchEngine, grammar: Grammar | None, num_tokens: int = 200, **fields: Any) -> Completion:
    request = GenerationRequest(
        engine.backbone.chat_ids("?"), max_new_tokens=num_tokens, grammar=grammar, **{"temperature": 1.0, "seed": 1, **fields}
    )
    return engine.complete([request])[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_reply_fits_its_schema_and_stops(engine: TorchEngine, seed: int) -> None:
    completion = written(engine, SCHEMA, seed=seed)
    told = json.loads(completion.text)
    assert set(told) == {"a", "b"} and told["a"] <= 99 and told["b"] in ("x y", "\u00e9")
    assert completion.finish_reason == "stop" and completion.token_ids[-1] in engine.backbone.stop_ids


def test_without_a_grammar_the_same_reply_is_no_json(engine: TorchEngine) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(written(engine, None).text)


def test_any_object_is_an_object(engine: TorchEngine) -> None:
    completion = written(engine, Grammar("json_object"), 500, seed=3)
    assert completion.text.startswith("{")
    if completion.finish_reason == "stop":
        assert isinstance(json.loads(completion.text), dict)


def test_the_whole_reply_matches_a_regular_expression(engine: TorchEngine) -> None:
    rule = r"(ab|c){2,3}-[0-9]{4}"
    assert re.fullmatch(rule, written(engine, Grammar("regex", (rule,))).text)


@pytest.mark.parametrize("texts", [("yes", "no"), ('say "hi"\\', "a\nb"), ("\u4f60\u597d", "\U0001f600")])
def test_a_choice_is_one_of_its_texts(engine: TorchEngine, texts: tuple[str, ...]) -> None:
    assert {written(engine, Grammar("choice", texts), seed=seed).text for seed in range(6)} <= set(texts)


def test_a_reply_cut_by_its_most_tokens_says_length(engine: TorchEngine) -> None:
    completion = written(engine, SCHEMA, 4)
    assert completion.finish_reason == "length" and len(completion.token_ids) == 4


def test_blanks_between_the_parts_of_json_have_an_end(engine: TorchEngine) -> None:
    (blank,) = engine.backbone.encode(" ")
    text = written(engine, SCHEMA, 300, logit_bias=((blank, 100.0),), temperature=0.0).text
    assert " " * 8 in text and set(json.loads(text)) == {"a", "b"}


def test_a_stop_text_ends_a_reply_inside_its_grammar(engine: TorchEngine) -> None:
    completion = written(engine, SCHEMA, stop=(":",))
    assert completion.finish_reason == "stop" and ":" not in completion.text and completion.text.startswith("{")


def test_an_end_that_the_grammar_asks_for_comes_before_min_new_tokens(engine: TorchEngine) -> None:
    completion = written(engine, Grammar("choice", ("a",)), min_new_tokens=50)
    assert completion.text == "a" and completion.finish_reason == "stop"


def test_what_a_reply_begins_with_belongs_to_it(engine: TorchEngine) -> None:
    begun = tuple(engine.backbone.encode('{"a": 12, "b": '))
    text = written(engine, SCHEMA, begun_ids=begun).text
    assert json.loads('{"a": 12, "b": ' + text)["a"] == 12
    with pytest.raises(BadGrammar, match="cannot go on"):
        written(engine, SCHEMA, begun_ids=tuple(engine.backbone.encode("no")))


BAD = [
    Grammar("json_schema", ('{"type": "objekt"}',)),
    Grammar("json_schema", ('{"$ref": "file:///etc/hosts"}',)),
    Grammar("json_schema", ('{"type": "array", "items": ' * 2000 + "{}" + "}" * 2000,)),
    Grammar("json_schema", ("[1",)),
    Grammar("regex", ("(a",)),
    Grammar("regex", ("(?=a)b",)),
    Grammar("regex", (r"((a|ab|abc|[a-z]+){1,1000}b?){1,1000}",)),
]


@pytest.mark.parametrize("grammar", BAD, ids=range(len(BAD)))
def test_a_grammar_that_cannot_be_followed_fails_alone_with_its_reason(engine: TorchEngine, grammar: Grammar) -> None:
    with pytest.raises(BadGrammar, match="grammar"):
        written(engine, grammar)
    assert json.loads(written(engine, SCHEMA).text)


def test_a_grammar_that_becomes_too_large_on_its_way_fails_its_row_and_no_other(engine: TorchEngine) -> None:
    many = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(2000)}}
    request = GenerationRequest(engine.backbone.chat_ids("?"), max_new_tokens=30, temperature=0.0)

    async def both() -> tuple[str, type[BaseException]]:
        hostile = replace(request, grammar=Grammar("json_schema", (json.dumps(many),)))
        fine = replace(request, grammar=SCHEMA, max_new_tokens=200)

        async def text(one: GenerationRequest) -> str:
            return "".join([delta.text async for delta in engine.generate(one)])

        good, bad = await asyncio.gather(text(fine), text(hostile), return_exceptions=True)
        assert isinstance(good, str)
        return good, type(bad)

    good, bad = asyncio.run(both())
    assert set(json.loads(good)) == {"a", "b"} and bad is BadGrammar


def test_a_grammar_that_others_have_pushed_out_is_followed_all_the_same(session_backbone: Backbone) -> None:
    engine, words = TorchEngine(session_backbone), [f"{place}a" for place in range(MAX_COMPILED + 8)]

    async def text(word: str) -> str:
        request = GenerationRequest((5, 6), max_new_tokens=20, temperature=0.0, grammar=Grammar("choice", (word,)))
        return "".join([delta.text async for delta in engine.generate(request)])

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*map(text, words)))

    try:
        assert asyncio.run(all_of_them()) == words
    finally:
        engine.close()


def test_a_release_with_a_penalty_and_a_budget_still_writes_what_fits(engine: TorchEngine) -> None:
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=4), tip=SwitchPenalty(words=("skin", "es")))
    assert "Answer:" in written(engine, None, policy=policy).text
    assert set(json.loads(written(engine, SCHEMA, policy=policy).text)) == {"a", "b"}


@pytest.fixture(scope="module")
def thinking(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    directory = tmp_path_factory.mktemp("thinking") / "backbone"
    thinking_directory(backbone_directory, directory)
    engine = TorchEngine(Backbone.load(str(directory), device="cpu", dtype=torch.float32))
    shutil.rmtree(directory)
    return engine


def test_a_chain_between_markers_is_free_and_what_follows_it_is_held(thinking: TorchEngine) -> None:
    begin, end = (thinking.backbone.encode(text)[0] for text in ("<think>", "</think>"))
    # Both markers are likely: a chain is begun, and ended within its first tokens.
    text = written(thinking, SCHEMA, 300, logit_bias=((begin, 30.0), (end, 32.0))).text
    chain, _, answer = text.partition("</think>")
    assert chain.startswith("<think>") and set(json.loads(answer)) == {"a", "b"}
    assert set(json.loads(written(thinking, SCHEMA, logit_bias=((begin, -100.0),)).text)) == {"a", "b"}


def test_a_budget_ends_a_chain_before_the_grammar_begins(thinking: TorchEngine) -> None:
    (begin,) = thinking.backbone.encode("<think>")
    policy = DecodingPolicy(budget=Budget(max_trace_tokens=6, max_answer_tokens=200))
    text = written(thinking, SCHEMA, 400, logit_bias=((begin, 30.0),), policy=policy, temperature=0.0).text
    chain, _, answer = text.partition("</think>")
    assert chain.startswith("<think>") and set(json.loads(answer)) == {"a", "b"}
