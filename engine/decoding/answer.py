"""What a reply answers, and what an answer says, whatever its case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata

from engine.decoding.chain import parted_by_any

ANSWER_CUE = "Answer:"


def first_answer(completion: str, lines: int = 1) -> str | None:
    """The rest of the line of the first `Answer:`, with the lines after it up to `lines`; None when there is no such line.

    What is written between the markers of a chain of thought answers nothing.
    """
    parts = parted_by_any(completion)
    _, mark, rest = (completion if parts is None else parts.answer).partition(ANSWER_CUE)
    if not mark:
        return None
    return "\n".join((rest.lstrip() if lines > 1 else rest).split("\n")[:lines]).strip()


def cue_after(text: str) -> str:
    """What stands between a trace and its answer: the cue on a line of its own."""
    return ANSWER_CUE if not text or text.endswith("\n") else f"\n{ANSWER_CUE}"


def same_answer(given: str | None, gold: str) -> bool:
    """Whether both say the same, whatever their case, spacing and punctuation; what is punctuation alone must be equal."""
    return given is not None and said(given) == said(gold)


def said(answer: str) -> str:
    """A key that answers share which say the same."""
    return comparable(answer) or answer.strip().rstrip(".").rstrip() or answer.strip()


def comparable(text: str) -> str:
    """Words and numbers of any script, with minus signs, decimal points and mathematical symbols, case folded.

    A hyphen inside a word is a space, and so are other symbols and all other punctuation.
    """
    folded = unicodedata.normalize("NFC", text.casefold()).replace("\N{MINUS SIGN}", "-")
    plain = re.sub(r"(?<=\w)-(?=\w)|(?<=[^\W\d])\.|\.(?!\d)", " ", folded)
    signed = re.sub(r"-(?![\d.])", " - ", plain)  # a minus that is no number's sign stands alone
    return " ".join("".join(_kept(char) for char in signed).split())


def _kept(char: str) -> str:
    kind = unicodedata.category(char)
    return char if char in "-." or kind[0] in "LMN" else f" {char} " if kind == "Sm" else " "
