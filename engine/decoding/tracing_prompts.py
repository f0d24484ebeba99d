"""What thought tracing and the perspective filter ask, in words; every reply is one line, or one letter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.decoding.answer import ANSWER_CUE
from engine.decoding.hypotheses import OPTIONS

YES_NO = ("a", "b")
LETTERS = tuple(letter for letter, _, _ in OPTIONS)
_LETTER = f"Give only the letter, on one line that starts with {ANSWER_CUE}"


def agent(story: str, question: str) -> str:
    return (
        f"{story}\nQuestion: {question}\nWhose thoughts must one know to answer this question? Give only the name, on one line."
    )


def acts(story: str, sentence: str, name: str) -> str:
    return f"Story: {story}\nSentence: {sentence}\nDoes {name} do or say something in this sentence?\na) yes\nb) no\n{_LETTER}"


def perceives(story: str, step: str, name: str) -> str:
    asked = f"What of this does {name} see or hear, and what not? Answer in one line."
    return f"Story so far: {story}\nWhat happens now: {step}\n{asked}"


def first_thoughts(story: str, perceived: str, action: str | None, name: str, count: int) -> str:
    done = f"\nThen: {action}" if action else ""
    why = "led to this action" if action else f"{name} has now"
    return (
        f"Story: {story}\nWhat {name} perceives: {perceived}{done}\nWrite {count} different hypotheses of what {name} thinks "
        f"(beliefs and intents) that {why}: a numbered list, one hypothesis a line."
    )


def next_thought(story: str, perceived: str, thought: str, name: str) -> str:
    return (
        f"Story so far: {story}\nWhat {name} perceives now: {perceived}\nWhat {name} thought before: {thought}\n"
        f"What does {name} think now? Answer in one line."
    )


def likely(story: str, thought: str, action: str, name: str) -> str:
    listed = "\n".join(f"{letter}) {text}" for letter, text, _ in OPTIONS)
    return (
        f"Story so far: {story}\nWhat {name} thinks: {thought}\n"
        f"How likely is it that {name}, thinking so, does this next: {action}\n{listed}\n{_LETTER}"
    )


def reworded(thought: str) -> str:
    return f"Say this in other words, in one line, with the same meaning: {thought}"


def known_events(story: str, name: str) -> str:
    """The perspective filter of SimToM (Wilf et al., arXiv 2311.10227): its first call; the second is the question itself."""
    return f"Story: {story}\nWhich events of this story does {name} know about? Repeat only these, word for word, in one line."


def with_thoughts(story: str, name: str, chain: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The story with what somebody thought after each step of it."""
    told = "\n".join(f"After: {step}\n{name} thinks: {' Or: '.join(thoughts)}" for step, thoughts in chain)
    return f"{story}\n{told}"


def sentences(story: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", story.strip()) if part]


def listed(reply: str, count: int) -> list[str]:
    """The entries of a numbered list, at most `count`; empty where there is none."""
    return [found.strip() for found in re.findall(r"^\s*\d+[.):]\s*(.+)$", reply, re.M) if found.strip()][:count]


def line(reply: str) -> str:
    """The first line that holds text."""
    return next((part.strip() for part in reply.splitlines() if part.strip()), "")
