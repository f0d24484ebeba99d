"""What a completion says, and when two answers are the same."""

from __future__ import annotations

import pytest

from evaluation.task import Trace, normalise, same_answer, split_of, trace_of


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("\N{CJK UNIFIED IDEOGRAPH-662F}", "\N{CJK UNIFIED IDEOGRAPH-5426}"),  # yes, no
        ("कि", "की"),  # one consonant under two vowel signs
        ("-3", "3"),
        ("1.5", "1 5"),
        (".5", "5"),
        ("10²", "102"),
        ("<", ">"),
        ("x < 3", "x > 3"),
        ("A+", "A-"),
        ("👍", "👎"),
        ("", "."),
    ],
)
def test_different_answers_are_told_apart(given: str, gold: str) -> None:
    assert not same_answer(given, gold)
    assert same_answer(given, given) and same_answer(gold, gold)


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("28.", "28"),
        ("**28**", "28"),
        ("1.50.", "1.50"),
        ("\N{MINUS SIGN}3", "-3"),
        ("x<3", "x < 3"),
        ("Well-Known", "well known"),
        ("Box A,  b", "box a b"),
        ("STRASSE", "straße"),
        ("e\N{COMBINING ACUTE ACCENT}", "É"),
        ("\N{CJK UNIFIED IDEOGRAPH-662F}。", "\N{CJK UNIFIED IDEOGRAPH-662F}"),
        ("👍.", "👍"),
    ],
)
def test_case_spacing_punctuation_and_a_closing_stop_do_not_tell_answers_apart(given: str, gold: str) -> None:
    assert same_answer(given, gold)


def test_no_answer_is_not_the_same_as_any() -> None:
    assert not same_answer(None, "28")
    assert not same_answer(trace_of("28").answer, "28")


def test_a_completion_is_read_up_to_its_first_answer() -> None:
    read = trace_of(" 7 + 5 = 12\n\nAnswer: 12 \n1 + 1 = 7\nAnswer: 13")
    assert read == Trace(("7 + 5 = 12",), "12", ("1 + 1 = 7", "Answer: 13"))
    assert trace_of("7 + 5 = 12") == Trace(("7 + 5 = 12",), None, ())


def test_how_answers_are_compared_leaves_every_question_in_its_split() -> None:
    # Splits are for ever: the key of a question is its ASCII words, whatever an answer's key is.
    assert normalise("Is -3.5 < 2? É!") == "is 3 5 2"
    assert split_of(normalise("Start with 12. Add 5. What is the result?")) == split_of("start with 12 add 5 what is the result")
