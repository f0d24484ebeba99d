"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's shape: what a client needs to count and cut as the service does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from adapters.backbone import Backbone
from service.caller import caller_of
from service.chat_fields import ChatFields
from service.errors import ApiError
from service.json_body import JsonRoute
from service.messages import ChatMessage
from service.parts import Parts, PartsHere
from service.prompts import LONG, chat_size, off_the_loop, rendered, template_of
from service.unsupported import UnsupportedField

router = APIRouter(route_class=JsonRoute)
T = TypeVar("T")
TokenId = Annotated[int, Field(strict=True, ge=0)]


class ToTokenize(ChatFields):
    """A text as `/v1/completions` reads it, or a chat as `/v1/chat/completions` does: one of `prompt` and `messages`.

    `add_special_tokens`: those that the tokenizer puts around a text.
    """

    messages: tuple[ChatMessage, ...] = Field(default=(), min_length=1)
    prompt: str | None = None
    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> ToTokenize:
        if (self.prompt is None) == (not self.messages):
            raise UnsupportedField("prompt", "Either prompt or messages is tokenized: give one of them.")
        return self


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class ToDetokenize(BaseModel):
    model: str | None = None
    tokens: list[TokenId]


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    additional_special_tokens: list[str]
    chat_template: str | None


@router.post("/tokenize", summary="The tokens of a text or a chat")
async def tokenize(parts: PartsHere, request: Request, body: ToTokenize) -> Tokenized:
    await known(parts, body.model)
    size = len(body.prompt) if body.prompt is not None else chat_size(body)
    return await _read(parts, request, size, partial(_tokenized, parts.backbone, body))


@router.post("/detokenize", summary="The text of tokens")
async def detokenize(parts: PartsHere, request: Request, body: ToDetokenize) -> Detokenized:
    await known(parts, body.model)
    vocabulary = parts.backbone.embeddings.num_embeddings
    if body.tokens and max(body.tokens) >= vocabulary:
        message = (
            f"Token ids are below {vocabulary} here, but tokens holds {max(body.tokens)}. Use this backbone's own tokenizer."
        )
        raise ApiError(400, message, "invalid_value", "tokens")
    decode = partial(parts.backbone.tokenizer.decode, body.tokens)
    return Detokenized(prompt=str(await _read(parts, request, 4 * len(body.tokens), decode)))


@router.get("/tokenizer_info", summary="The tokenizer")
async def tokenizer_info(parts: PartsHere) -> TokenizerInfo:
    tokenizer = parts.backbone.tokenizer
    named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        model_max_length=parts.backbone.context_length,
        vocab_size=len(tokenizer),
        additional_special_tokens=[str(token) for token in tokenizer.all_special_tokens],
        chat_template=template_of(parts.backbone) or None,
        **{name: None if token is None else str(token) for name, token in named.items()},
    )


async def known(parts: PartsHere, model: str | None) -> None:
    """ApiError 404 where a name is given that means nothing; every release has the backbone's tokenizer."""
    if model is not None:
        (await parts.models.lease(model)).release()


async def _read(parts: Parts, request: Request, size: int, work: Callable[[], T]) -> T:
    """Short texts at once. Long ones take turns with the prompts of completions: ApiError 429 where too many are under way."""
    if size <= LONG:
        return work()
    with parts.admission.reading(caller_of(request), size):
        return await off_the_loop(size, work)


def _tokenized(backbone: Backbone, body: ToTokenize) -> Tokenized:
    ids = _ids(backbone, body)
    strings = [str(backbone.tokenizer.convert_ids_to_tokens(i)) for i in ids] if body.return_token_strs else None
    return Tokenized(count=len(ids), max_model_len=backbone.context_length, tokens=ids, token_strs=strings)


def _ids(backbone: Backbone, body: ToTokenize) -> list[int]:
    if body.prompt is None:
        return backbone.encode("".join(rendered(backbone, body)))
    return list(backbone.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)["input_ids"])
