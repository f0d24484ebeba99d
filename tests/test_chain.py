"""A reply's chain of thought and its answer, whatever pieces it comes in."""

from __future__ import annotations

import pytest

from adapters.markers import Markers
from engine.decoding.answer import first_answer
from engine.decoding.chain import ChainStream, Parted, parted, parted_by_any
from evaluation.task import trace_of

THINK = Markers("<think>", "</think>")
# What is written, whether the prompt has begun the chain, what is chain and what is answer.
REPLIES = {
    "whole": ("<think>\nAdd 5.\n</think>\n\nIt is 7.", False, "Add 5.", "It is 7."),
    "begun by the prompt": ("\nAdd 5.\n</think>\n\nIt is 7.", True, "Add 5.", "It is 7."),
    "without a chain": (" It is 7.\n", False, "", " It is 7.\n"),
    "empty chain": ("<think>\n\n</think>\n\nIt is 7.", False, "", "It is 7."),
    "cut in the chain": ("<think>\nAdd 5. Then", False, "Add 5. Then", ""),
    "cut in the end marker": ("Add 5.</thi", True, "Add 5.</thi", ""),
    "cut in the begin marker": ("<thi", False, "", "<thi"),
    "markers in the answer": ("<think>a</think>Write <think>b</think>.", False, "a", "Write <think>b</think>."),
    "markers in a plain answer": ("Use <think> and </think>.", False, "", "Use <think> and </think>."),
    "begin marker in the chain": ("<think>a <think> b</think>c", False, "a <think> b", "c"),
    "several blocks": ("<think>a\n</think>\n<think>\nb</think> c <think>d</think>", False, "a\n\nb", "c <think>d</think>"),
    "space within": ("<think>a\n\n b</think>c\n\nd ", False, "a\n\n b", "c\n\nd "),
    "nothing": ("", False, "", ""),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_is_parted_into_chain_and_answer(case: str) -> None:
    text, is_open, chain, answer = REPLIES[case]
    assert parted(text, THINK, is_open) == Parted(chain, answer)


@pytest.mark.parametrize("case", REPLIES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_pieces_of_any_size_give_the_same(case: str, size: int) -> None:
    text, is_open, chain, answer = REPLIES[case]
    stream = ChainStream(THINK, is_open)
    pieces = [*(stream.add(text[start : start + size]) for start in range(0, len(text), size)), stream.finish()]
    assert ("".join(piece.chain for piece in pieces), "".join(piece.answer for piece in pieces)) == (chain, answer)


def test_no_more_is_held_back_than_may_be_a_marker() -> None:
    stream = ChainStream(THINK, is_open=True)
    assert stream.add("Add 5") == ("Add 5", "")
    assert stream.add(" </th") == ("", "")
    assert stream.add("ree") == (" </three", "")
    assert stream.add("</think>It") == ("", "It")
    assert stream.add(" is") == ("", " is")


def test_an_answer_is_read_behind_the_chain() -> None:
    reply = "<think>\nFirst guess.\nAnswer: 3\nNo.\n</think>\nSo:\nAnswer: 7\nDone."
    assert first_answer(reply) == "7"
    trace = trace_of(reply)
    assert trace.steps == ("First guess.", "Answer: 3", "No.", "So:")
    assert (trace.answer, trace.after) == ("7", ("Done.",))


def test_a_chain_that_its_prompt_began_is_seen_by_its_end() -> None:
    assert parted_by_any("Add 5.\nAnswer: 3</think>Answer: 7") == ("Add 5.\nAnswer: 3", "Answer: 7")


def test_a_chain_without_its_end_answers_nothing() -> None:
    assert first_answer("<think>\nAnswer: 3\n") is None


def test_a_plain_trace_is_untouched() -> None:
    assert parted_by_any("Add 5.\nAnswer: 7") is None
    assert trace_of("Add 5.\nAnswer: 7\nmore").steps == ("Add 5.",)
