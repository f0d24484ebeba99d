"""Where a backbone's markers of a chain of thought are found, and that its text shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from thinking_backbones import thinking_directory

from adapters.backbone import Backbone
from adapters.markers import Markers, markers_of

THINK = Markers("<think>", "</think>")


@pytest.fixture(scope="module", params=[False, True], ids=["words", "specials"])
def thinking(request: pytest.FixtureRequest, backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("thinking") / "backbone"
    return Backbone.load(str(thinking_directory(backbone_directory, folder, special=request.param)), device="cpu")


def test_a_plain_backbone_has_none(backbone: Backbone) -> None:
    assert backbone.markers is None and not backbone.begins_chain(tuple(backbone.encode("<think>\n")))


def test_a_template_that_speaks_of_a_marker_tells_both(thinking: Backbone) -> None:
    assert thinking.markers == THINK


def test_two_tokens_of_their_own_tell_them_where_the_template_does_not(thinking: Backbone) -> None:
    tokenizer, template = thinking.tokenizer, thinking.tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0].content }}"
        assert markers_of(tokenizer) == THINK
    finally:
        tokenizer.chat_template = template


def test_the_template_goes_before_the_vocabulary(thinking: Backbone) -> None:
    tokenizer, template = thinking.tokenizer, thinking.tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0].content }}[THINK]"
        assert markers_of(tokenizer) == Markers("[THINK]", "[/THINK]")
    finally:
        tokenizer.chat_template = template


def test_the_markers_are_in_the_text_also_where_they_are_special_tokens(thinking: Backbone) -> None:
    text = "<think>\nAdd 5.\n</think>\n\nAnswer: 7<tool_call>"
    ids = [*thinking.encode(text), *thinking.stop_ids]
    assert thinking.decode(ids) == text


def test_a_prompt_begins_the_chain_where_its_end_says_so(thinking: Backbone) -> None:
    prompts = {"<think>\n": True, "<think>\n\n</think>\n\n": False, "assistant\n": False, "What is <think> for?": False}
    assert {text: thinking.begins_chain(tuple(thinking.encode(text))) for text in prompts} == prompts
