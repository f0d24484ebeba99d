"""Traces as they are written and as they are read: steps, one a line, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.backbone import Backbone
from engine.engine import Completion, Engine, GenerationRequest
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.staircase import Ids
from evaluation.task import Example, reasoning_prompt, trace_of

Trace = tuple[str, ...]


def greedy_replies(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    examples: Sequence[Example],
    max_new_tokens: int = MAX_NEW_TOKENS,
    begun: Sequence[Ids] | None = None,
) -> list[Completion]:
    """Greedy replies to the reasoning prompt, after what they are begun with; this counts against their tokens."""
    asked = [
        GenerationRequest(
            backbone.chat_ids(reasoning_prompt(example)),
            profile,
            max_new_tokens=max(1, max_new_tokens - len(start)) if start else max_new_tokens,
            temperature=0.0,
            begun_ids=start,
        )
        for example, start in zip(examples, begun or [()] * len(examples), strict=True)
    ]
    return engine.complete(asked)


def written(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    examples: Sequence[Example],
    begun: Sequence[Ids] | None = None,
) -> list[Trace]:
    """The steps of these replies."""
    return [trace_of(reply.text).steps for reply in greedy_replies(engine, backbone, profile, examples, begun=begun)]
