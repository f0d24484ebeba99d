"""Prompts: from what a client sent to token ids, checked against the context."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError

from adapters.backbone import Backbone, Message
from service.errors import ApiError


def chat_prompt(backbone: Backbone, turns: Sequence[Message], overhead: int = 0) -> tuple[int, ...]:
    try:
        ids = backbone.chat_ids(turns)
    except TemplateError as error:
        message = f"The backbone's chat template refuses these messages: {error}."
        raise ApiError(400, message, "invalid_value", "messages") from error
    return _checked(backbone, ids, overhead, "messages")


def completion_prompts(backbone: Backbone, prompts: Sequence[str | tuple[int, ...]], overhead: int = 0) -> list[tuple[int, ...]]:
    """Texts are tokenized as they are: no chat template, no special tokens."""
    ids = [tuple(backbone.encode(prompt)) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [_checked(backbone, each, overhead, "prompt") for each in ids]


def _checked(backbone: Backbone, ids: tuple[int, ...], overhead: int, param: str) -> tuple[int, ...]:
    """`overhead` is what the release adds to every prompt."""
    limit, vocabulary = backbone.context_length - overhead, backbone.embeddings.num_embeddings
    if not ids:
        raise ApiError(400, f"{param} must hold at least one token, but it is empty.", "invalid_value", param)
    if len(ids) >= limit:
        message = (
            f"This model's context is {limit} tokens, one of them for the answer, but {param} has {len(ids)}. "
            f"Shorten it by {len(ids) - limit + 1} or more."
        )
        raise ApiError(400, message, "context_length_exceeded", param)
    if max(ids) >= vocabulary:
        message = f"Token ids are below {vocabulary} here, but {param} holds {max(ids)}. Use this backbone's own tokenizer."
        raise ApiError(400, message, "invalid_value", param)
    return ids
