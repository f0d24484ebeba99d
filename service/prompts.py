"""Prompts: from what a client sent to token ids, checked against the context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, TypeVar

from jinja2 import TemplateError
from pydantic import JsonValue

from adapters.backbone import Backbone
from service.chat_fields import ChatFields
from service.errors import ApiError
from service.messages import Turn
from service.thinking import reads, template_values
from service.tool_calls import FORMATS, format_of

T = TypeVar("T")
# What the request says in fields of its own, or the tokenizer's method takes itself.
_TAKEN = frozenset(
    "messages conversation tools documents add_generation_prompt continue_final_message tokenize padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
LONG = 4096  # characters: longer texts are read in threads of their own, so that streams go on
# Few: whoever sends many at once keeps only others with long texts waiting, and never who follows the ledger.
_READING = ThreadPoolExecutor(2, "graftline-texts")


class ReadPrompt(NamedTuple):
    """`begun_ids`: how the reply begins already, where it goes on with the last message."""

    ids: tuple[int, ...]
    begun_ids: tuple[int, ...] = ()


async def off_the_loop(num_characters: int, work: Callable[[], T]) -> T:
    """Short work at once, long work in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_READING, work) if num_characters > LONG else work()


async def read_chat(backbone: Backbone, body: ChatFields, overhead: int = 0) -> ReadPrompt:
    """`chat_prompt`, off the event loop where the messages are long."""
    return await off_the_loop(chat_size(body), partial(chat_prompt, backbone, body, overhead))


def chat_size(body: ChatFields) -> int:
    """Characters that are to be read, about."""
    return sum(len(message.text) for message in body.messages) + 1024 * len(body.tools)


def chat_prompt(backbone: Backbone, body: ChatFields, overhead: int = 0) -> ReadPrompt:
    """ApiError where the template does not know what the request asks of it, or refuses the messages."""
    text, begun = rendered(backbone, body)
    _refuse_hopeless(backbone, text, "messages")
    ids, begun_ids = tuple(backbone.encode(text)), tuple(backbone.encode(begun))
    _checked(backbone, ids, overhead + len(begun_ids), "messages")
    return ReadPrompt(ids, begun_ids)


async def read_prompts(backbone: Backbone, body: CompletionFields, overhead: int = 0) -> list[tuple[int, ...]]:
    """`completion_prompts`, off the event loop where the texts are long."""
    size = sum(len(prompt) for prompt in body.prompts)
    return await off_the_loop(size, partial(completion_prompts, backbone, body, overhead))


class CompletionFields(Protocol):
    """What a completion's request says of its prompts."""

    truncate_prompt_tokens: int | None
    add_special_tokens: bool

    @property
    def prompts(self) -> Sequence[str | tuple[int, ...]]: ...

    @property
    def token_limit(self) -> int | None: ...


def completion_prompts(backbone: Backbone, body: CompletionFields, overhead: int = 0) -> list[tuple[int, ...]]:
    """Texts are tokenized as they are: no chat template, and no special tokens unless they are asked for."""
    keep = body.truncate_prompt_tokens
    if keep == -1:
        keep = max(1, backbone.context_length - overhead - max(1, body.token_limit or 1))
    for prompt in body.prompts if keep is None else ():
        if isinstance(prompt, str):
            _refuse_hopeless(backbone, prompt, "prompt")
    ids = [_encoded(backbone, prompt, body.add_special_tokens) for prompt in body.prompts]
    return [_checked(backbone, each if keep is None else each[-keep:], overhead, "prompt") for each in ids]


def _encoded(backbone: Backbone, prompt: str | tuple[int, ...], with_specials: bool) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    return tuple(backbone.tokenizer(prompt)["input_ids"] if with_specials else backbone.encode(prompt))


def template_of(backbone: Backbone, *, with_tools: bool = False) -> str:
    """The source of the chat template; empty where the backbone has none. Some have one of their own for tools."""
    found = backbone.tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("tool_use" if with_tools else "default") or found.get("default") or next(iter(found.values()))
    return str(found or "")


def rendered(backbone: Backbone, body: ChatFields) -> tuple[str, str]:
    """The prompt's text, and the beginning of the reply that it goes on with."""
    template = template_of(backbone, with_tools=body.offers_tools)
    values = _values(body, template)
    if not template:
        lines = "\n".join(str(turn["content"]) for turn in body.turns)
        last = body.messages[-1].text
        return (lines[: -len(last)], last) if body.continue_final_message else (f"{lines}\n", "")
    opens = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    try:
        text = _applied(backbone, body.turns, values, opens, body.continue_final_message)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        # A template may meet a value that it did not expect anywhere in what the client sent.
        message = f"The backbone's chat template refuses these messages: {str(error).rstrip('.')}."
        raise ApiError(400, message, "invalid_value", "messages") from error
    if not body.continue_final_message:
        return text, ""
    last = body.messages[-1].text
    begun = next((part for part in (last, last.rstrip()) if part and text.endswith(part)), "")
    return text[: len(text) - len(begun)], begun


def _applied(backbone: Backbone, turns: list[Turn], values: Mapping[str, JsonValue], opens: bool, continues: bool) -> str:
    apply: Callable[..., Any] = backbone.tokenizer.apply_chat_template
    return str(apply(turns, tokenize=False, add_generation_prompt=opens, continue_final_message=continues, **values))


def _values(body: ChatFields, template: str) -> dict[str, JsonValue]:
    """What the template is given. ApiError by the name of what it would not read."""
    for name in body.chat_template_kwargs:
        if name in _TAKEN or not reads(template, name):
            message = f"This backbone's chat template does not read {name!r}, so it would change nothing. Leave it out."
            raise ApiError(400, message, "unsupported_parameter", "chat_template_kwargs")
    values = template_values(body, template)
    if not body.offers_tools:
        return values
    if not reads(template, "tools") or format_of(template) is None:
        lack = "knows no tools" if not reads(template, "tools") else "writes calls in a format that is not known here"
        known = ", ".join(sorted(known.name for known in FORMATS.values()))
        message = f"tools need a chat template that knows them ({known}), but this backbone's {lack}. Leave them out."
        raise ApiError(400, message, "unsupported_parameter", "tools")
    return values | {"tools": [tool.read for tool in body.tools]}


@lru_cache(maxsize=8)
def _longest_token(backbone: Backbone) -> int:
    """Characters of the longest token."""
    return max(map(len, backbone.tokenizer.get_vocab()))


def _refuse_hopeless(backbone: Backbone, text: str, param: str) -> None:
    """Refuses before it is tokenized, which takes a second for every megabyte, what no tokenizer brings into the context.

    Twice the longest token for every place: a tokenizer may drop some characters before it begins.
    """
    most = 2 * _longest_token(backbone) * backbone.context_length
    if len(text) > most:
        message = (
            f"This model's context is {backbone.context_length} tokens, which hold fewer than {most} characters, but {param} has "
            f"{len(text)}. Shorten it."
        )
        raise ApiError(400, message, "context_length_exceeded", param)


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
