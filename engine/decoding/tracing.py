"""Thought tracing as a part of a decoding policy: a release that has it declares that its backbone can follow such prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adapters.spec import Spec


class Tracing(Spec):
    """At most so much of each: hypotheses about the mind that is asked about, steps of the story, tokens of one thought.

    It acts on no token: what reads a prompt in this way is `thought_tracing.py`, over any engine that writes and scores.
    """

    num_hypotheses: Annotated[int, Field(ge=2, le=8)] = 4
    max_steps: Annotated[int, Field(ge=1, le=32)] = 8
    max_thought_tokens: Annotated[int, Field(ge=4)] = 48
