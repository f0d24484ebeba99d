"""Log-probabilities on the wire: a chat's list with bytes, and the four lists of a completion with its echoed prompt."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from adapters.backbone import Backbone
from adapters.vocabulary import NoVocabulary, Vocabulary
from engine.engine import Delta, ReadToken, TokenLogprob
from service.errors import ApiError

LEAST = -9999.0  # JSON has no minus infinity

Wire = dict[str, JsonValue]


async def vocabulary_of(backbone: Backbone) -> Vocabulary:
    """Ready to be asked; ApiError where it has no bytes."""
    try:
        await asyncio.to_thread(backbone.vocabulary.prepare)
    except NoVocabulary as error:
        raise ApiError(400, str(error), "unsupported_parameter", "logprobs") from error
    return backbone.vocabulary


class ChoiceLog(Protocol):
    def add(self, delta: Delta) -> Wire | None:
        """What this delta adds, as a chunk has it; None: nothing."""
        ...

    @property
    def whole(self) -> Wire: ...


@dataclass
class ChatLog:
    vocabulary: Vocabulary
    num_top: int
    content: list[JsonValue] = field(default_factory=list)

    def add(self, delta: Delta) -> Wire | None:
        if delta.token_id is None or delta.logprob is None:
            return None
        logprob, top = listed(delta.token_id, delta.logprob, delta.top_logprobs)
        told: JsonValue = {
            **self._token(delta.token_id, logprob),
            "top_logprobs": [self._token(token_id, one) for token_id, one in top[: self.num_top]],
        }
        self.content.append(told)
        return {"content": [told], "refusal": None}

    @property
    def whole(self) -> Wire:
        return {"content": self.content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Wire:
        written = self.vocabulary.bytes_of(token_id)
        return {"token": written.decode(errors="replace"), "logprob": logprob, "bytes": list(written)}


@dataclass
class CompletionLog:
    """`echoes`: the prompt's tokens stand before those of the reply."""

    vocabulary: Vocabulary
    num_top: int
    echoes: bool = False
    tokens: list[JsonValue] = field(default_factory=list)
    token_logprobs: list[JsonValue] = field(default_factory=list)
    top_logprobs: list[JsonValue] = field(default_factory=list)
    text_offset: list[JsonValue] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    _num_characters: int = 0

    def add(self, delta: Delta) -> Wire | None:
        first = len(self.tokens)
        for token in delta.prompt if self.echoes else ():
            self._add(token)
        if delta.token_id is not None:
            self._add(ReadToken(delta.token_id, delta.logprob, delta.top_logprobs))
        return None if len(self.tokens) == first else self._from(first)

    @property
    def whole(self) -> Wire:
        return self._from(0)

    def _add(self, token: ReadToken) -> None:
        written = self.vocabulary.bytes_of(token.token_id)
        self.tokens.append(written.decode(errors="replace"))
        self.text_offset.append(self._num_characters)
        self._num_characters += len(self._decoder.decode(written))
        if token.logprob is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        logprob, top = listed(token.token_id, token.logprob, token.top[: self.num_top])
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(self._by_text([*top, TokenLogprob(token.token_id, logprob)]))

    def _by_text(self, top: Iterable[TokenLogprob]) -> Wire:
        """Different tokens of one text, as parts of a character are, stand apart."""
        found: Wire = {}
        texts: dict[str, int] = {}
        for token_id, logprob in top:
            text = self.vocabulary.bytes_of(token_id).decode(errors="replace")
            if texts.setdefault(text, token_id) != token_id:
                text = f"token_id:{token_id}"
            found[text] = logprob
        return found

    def _from(self, first: int) -> Wire:
        return {
            "tokens": self.tokens[first:],
            "token_logprobs": self.token_logprobs[first:],
            "top_logprobs": self.top_logprobs[first:],
            "text_offset": self.text_offset[first:],
        }


def listed(token_id: int, logprob: float, top: Sequence[TokenLogprob]) -> tuple[float, list[TokenLogprob]]:
    """A token that is among the likeliest has the float that it has there: clients compare them."""
    told = [TokenLogprob(one, max(LEAST, value)) for one, value in top]
    return dict(told).get(token_id, max(LEAST, logprob)), told


def echoed_text(vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> str:
    """What they write, special tokens by their names: as the offsets count."""
    return b"".join(map(vocabulary.bytes_of, prompt_ids)).decode(errors="replace")
