"""The wire shapes: what a request may hold, what is refused by name, what a reply looks like."""

from __future__ import annotations

import pytest
from pydantic import JsonValue, ValidationError

from service.openai_shapes import ChatRequest, Choice, CompletionRequest, Decoding, Reply, UnsupportedField, Usage

HELLO: list[JsonValue] = [{"role": "user", "content": "Hello"}]
REPLY = Reply(id="cmpl-1", object="text_completion", created=1, model="law@2", system_fingerprint="fp_0")


def chat(**fields: JsonValue) -> ChatRequest:
    return ChatRequest.model_validate({"model": "law", "messages": HELLO, **fields})


def completion(**fields: JsonValue) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "law", "prompt": "Hello", **fields})


def refused_field(**fields: JsonValue) -> str:
    with pytest.raises(ValidationError) as caught:
        chat(**fields)
    cause = caught.value.errors()[0].get("ctx", {}).get("error")
    assert isinstance(cause, UnsupportedField), caught.value
    return cause.param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        ("chat_template", "{{ messages }}"),
        ("documents", [{"text": "a"}]),
        ("echo", True),
        ("best_of", 2),
        ("truncate_prompt_tokens", 5),
        ("suffix", "the end"),
        ("prompt_logprobs", 0),
        ("use_beam_search", True),
        ("bad_words", ["a"]),
        ("allowed_token_ids", [1]),
        ("skip_special_tokens", False),
        ("return_token_ids", True),
        ("vllm_xargs", {"a": 1}),
        ("length_penalty", 1.5),
        ("early_stopping", True),
        ("spaces_between_special_tokens", False),
        ("prediction", {"type": "content", "content": "a"}),
        ("web_search_options", {}),
        ("verbosity", "low"),
        ("mm_processor_kwargs", {"a": 1}),
        ("guided_decoding_backend", "outlines"),
        ("guided_grammar", "root ::= 'a'"),
    ],
)
def test_a_known_but_unsupported_field_is_refused_by_its_name(param: str, value: JsonValue) -> None:
    assert refused_field(**{param: value}) == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("echo", False),
        ("best_of", 1),
        ("best_of", None),
        ("tools", []),
        ("tool_choice", "none"),
        ("skip_special_tokens", True),
        ("suffix", ""),
        ("vllm_xargs", {}),
        ("length_penalty", 1.0),
        ("early_stopping", False),
        ("spaces_between_special_tokens", True),
        ("prediction", None),
        ("verbosity", "medium"),
        ("mm_processor_kwargs", {}),
    ],
)
def test_an_unsupported_field_that_asks_for_nothing_is_accepted(param: str, value: JsonValue) -> None:
    assert chat(**{param: value}).model == "law"


def test_logprobs_zero_asks_a_completion_for_log_probabilities() -> None:
    # In /v1/completions, logprobs=0 returns those of the written tokens; only false and null ask for nothing.
    assert completion(logprobs=0).num_top == 0
    assert completion(logprobs=False).num_top is completion(logprobs=None).num_top is completion().num_top is None


def test_a_priority_is_32_bits_and_null_is_none() -> None:
    assert [chat(priority=one).priority for one in (-3, 0, None)] == [-3, 0, None]
    with pytest.raises(ValidationError, match="priority"):
        chat(priority=2**31)


def test_a_field_that_nobody_knows_is_ignored() -> None:
    assert chat(store=True, metadata={"team": "a"}, made_up=7).turns == [{"role": "user", "content": "Hello"}]


def test_the_decoding_field_is_empty_unless_given() -> None:
    assert chat().decoding == chat(decoding=None).decoding == chat(decoding={}).decoding == Decoding()
    branches = chat(decoding={"branches": {"num_branches": 4}}, temperature=0).decoding.branches
    assert branches is not None and branches.num_branches == 4


@pytest.mark.parametrize("wrong", [{"tipp": False}, {"branches": {"n": 2}}, {"branches": {"num_branches": 1}}, "off"])
def test_a_wrong_decoding_field_is_refused(wrong: JsonValue) -> None:
    with pytest.raises(ValidationError, match="decoding"):
        chat(decoding=wrong)


@pytest.mark.parametrize(("param", "value"), [("temperature", 0.5), ("top_p", 0.9), ("stop", "x")])
def test_what_branches_would_ignore_is_refused_beside_them(param: str, value: JsonValue) -> None:
    assert refused_field(**{"decoding": {"branches": {}}, param: value}) == param


def test_content_may_be_a_list_of_text_parts() -> None:
    parts: list[JsonValue] = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat(messages=[{"role": "user", "content": parts}]).turns == [{"role": "user", "content": "Hello"}]


def test_a_picture_is_refused() -> None:
    picture: list[JsonValue] = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    with pytest.raises(ValidationError):
        chat(messages=[{"role": "user", "content": picture}])


def test_a_developer_message_is_a_system_message() -> None:
    assert chat(messages=[{"role": "developer", "content": "Be brief"}]).turns == [{"role": "system", "content": "Be brief"}]


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert chat(max_tokens=5).token_limit == 5
    assert chat().token_limit is None


def test_a_completion_without_a_limit_writes_sixteen_tokens() -> None:
    assert completion().token_limit == 16


def test_stop_is_one_text_or_up_to_four() -> None:
    assert chat(stop="\n").stop == ("\n",)
    assert chat(stop=["a", "b", "c", "d"]).stop == ("a", "b", "c", "d")
    assert chat(stop=None).stop == ()
    for wrong in (["a", "b", "c", "d", "e"], ["a", ""]):
        with pytest.raises(ValidationError, match="at most 4 texts"):
            chat(stop=list(wrong))


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", 2.1), ("top_p", 0.0), ("top_p", 1.1), ("max_tokens", 0), ("seed", "x")],
)
def test_a_value_outside_its_range_is_refused(field: str, value: JsonValue) -> None:
    with pytest.raises(ValidationError) as caught:
        chat(**{field: value})
    assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n", "seed", "top_k", "temperature", "priority"])
def test_true_is_no_number(field: str) -> None:
    with pytest.raises(ValidationError, match="it is a number, but got true"):
        chat(**{field: True})


@pytest.mark.parametrize("fields", [{"logit_bias": {"1": True}}, {"decoding": {"tip": {"alpha": True}}}])
def test_true_is_no_number_inside_of_a_field(fields: dict[str, JsonValue]) -> None:
    with pytest.raises(ValidationError, match="number"):
        chat(**fields)


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert chat(max_tokens=12.0).max_tokens == 12


def test_sampling_left_open_stays_open() -> None:
    # The release's decoding policy fills it in, so None must reach the engine.
    request = chat()
    assert (request.temperature, request.top_p, request.seed) == (None, None, None)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_a_prompt_has_four_forms(prompt: JsonValue, prompts: list[str | tuple[int, ...]]) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [-1], 7, None])
def test_any_other_prompt_is_refused(prompt: JsonValue) -> None:
    with pytest.raises(ValidationError):
        completion(prompt=prompt)


def test_stream_options_need_a_stream() -> None:
    assert refused_field(stream_options={"include_usage": True}) == "stream_options"
    options = chat(stream=True, stream_options={"include_usage": True}).stream_options
    assert options is not None and options.include_usage


def test_a_choice_shows_only_its_own_kind_of_text() -> None:
    assert Choice(index=0, text="").wire() == {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
    assert set(Choice(index=0, delta={}).wire()) == {"index", "delta", "logprobs", "finish_reason"}


def test_the_usage_chunk_has_no_choices_and_the_others_no_usage() -> None:
    last = REPLY.wire([], Usage.of(3, 4))
    assert last["choices"] == [] and last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert REPLY.wire([Choice(index=0, text="a")], None)["usage"] is None
    assert "usage" not in REPLY.wire([Choice(index=0, text="a")], None, with_usage=False)
