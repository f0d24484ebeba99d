"""Text as it streams: whole characters, and never a piece of a stop text."""

from __future__ import annotations

import pytest

from adapters.backbone import Backbone
from engine.text import TextStream


def pieces(backbone: Backbone, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """What each token of the text lets out, and last what the end lets out."""
    stream, found = TextStream(backbone.decode, stop), []
    for token_id in backbone.encode(text):
        stream.add(token_id)
        found.append(stream.advance())
        if stream.stopped:
            return found, stream
    return [*found, stream.advance(final=True)], stream


@pytest.mark.parametrize("text", ["Answer: 14", "naïve café", "数学 🙂🙃 ok", "  two  spaces \n\n lines\t"])
def test_pieces_join_to_the_text_and_hold_whole_characters(backbone: Backbone, text: str) -> None:
    found, _ = pieces(backbone, text)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert len(found) > 2


def test_a_character_that_never_becomes_whole_is_dropped(backbone: Backbone) -> None:
    ids = backbone.encode("ok🙂")
    stream = TextStream(backbone.decode)
    for token_id in ids[:-1]:
        stream.add(token_id)
    assert stream.advance(final=True) == "ok"


@pytest.mark.parametrize("stop", ["three", "e t", "one two three", " ", "two three four", "🙂"])
def test_a_stop_text_is_found_across_tokens_and_not_returned(backbone: Backbone, stop: str) -> None:
    text = "one two three four 🙂 five"
    found, stream = pieces(backbone, text, (stop,))
    assert "".join(found) == text[: text.index(stop)]
    assert stream.stopped


def test_the_first_of_several_stop_texts_counts(backbone: Backbone) -> None:
    found, _ = pieces(backbone, "one two three", ("three", "two", "absent"))
    assert "".join(found) == "one "


def test_the_beginning_of_a_stop_text_comes_out_when_the_rest_does_not_follow(backbone: Backbone) -> None:
    found, stream = pieces(backbone, "stop it, and sto", ("stop now",))
    assert "".join(found) == "stop it, and sto"
    assert not stream.stopped


def test_nothing_is_held_back_without_a_reason(backbone: Backbone) -> None:
    found, _ = pieces(backbone, "plain letters", ("#",))
    assert all(found[:-1]) and found[-1] == ""
