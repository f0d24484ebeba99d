"""Traces as they are written and as they are read: steps, one a line, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.backbone import Backbone
from engine.engine import Engine, GenerationRequest
from evaluation.measures.generation import MAX_NEW_TOKENS
from evaluation.staircase import Ids
from evaluation.task import Example, reasoning_prompt, trace_of

Trace = tuple[str, ...]


def written(
    engine: Engine,
    backbone: Backbone,
    profile: str | None,
    examples: Sequence[Example],
    begun: Sequence[Ids] | None = None,
) -> list[Trace]:
    """The steps that the profile writes greedily, after those that it is begun with; these count against its tokens."""
    starts = begun or [()] * len(examples)
    asked = [
        GenerationRequest(
            backbone.chat_ids(reasoning_prompt(example)),
            profile,
            max_new_tokens=max(1, MAX_NEW_TOKENS - len(start)),
            temperature=0.0,
            begun_ids=start,
        )
        for example, start in zip(examples, starts, strict=True)
    ]
    return [trace_of(completion.text).steps for completion in engine.complete(asked)]
