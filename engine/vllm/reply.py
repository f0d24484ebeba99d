"""A reply as vLLM's tokens come: text in whole characters, stop texts, the end of a budget, and no token without a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adapters.backbone import Backbone
from engine.decoding.row_policy import RowPolicy
from engine.engine import Delta, FinishReason, GenerationRequest, ReadToken, TokenLogprob
from engine.errors import NotFinite
from engine.text import TextStream


class Logprob(Protocol):
    """As vLLM tells it."""

    logprob: float
    rank: int | None


Place = Mapping[int, Logprob]  # of one place: the token that stands there and the likeliest


@dataclass
class Reply:
    """`policy` is a copy of the one that draws in vLLM's process: it only follows, to see where the reply is over."""

    request: GenerationRequest
    ends: frozenset[int]
    stream: TextStream
    policy: RowPolicy | None
    finish_reason: FinishReason | None = None
    num_tokens: int = field(default=0, init=False)
    _read_back: tuple[ReadToken, ...] = field(default=(), init=False)

    @classmethod
    def to(cls, request: GenerationRequest, backbone: Backbone, policy: RowPolicy | None) -> Reply:
        stream = TextStream(backbone.decode, request.stop, request.begun_ids, request.includes_stop)
        return cls(request, ends_of(request, backbone), stream, policy)

    def read(self, ids: Sequence[int], places: Sequence[Place | None]) -> None:
        """What vLLM tells of the prompt; given with the first delta."""
        count = self.request.num_prompt_logprobs or 0
        self._read_back = tuple(_read(token_id, place, count) for token_id, place in zip(ids, places, strict=True))

    def take(self, token_id: int, place: Place) -> Delta:
        """NotFinite where the model gave the token no number: its logits held NaN or infinity."""
        logprob = place[token_id].logprob
        if not math.isfinite(logprob):
            raise NotFinite(
                f"Logits must be finite, but those of profile {self.request.profile!r} held NaN or infinity. "
                "Fit it again, or serve it in float32."
            )
        if self.policy is not None:
            self.policy.take(token_id)
        self.num_tokens += 1
        ended = token_id in self.ends
        if not ended or self.request.includes_stop:
            self.stream.add(token_id)
        over = None if self.policy is None else self.policy.finish_reason
        final = ended or over is not None or self.num_tokens == self.request.max_new_tokens
        text = self.stream.advance(final=final, watch=self.num_tokens > self.request.min_new_tokens)
        if ended or self.stream.stopped:
            self.finish_reason = "stop"
        elif final:
            self.finish_reason = over or "length"
        return Delta(text, token_id, logprob, self.finish_reason, likeliest(place, self.request.top_logprobs), self._told())

    def end(self) -> Delta:
        """Nothing more is written."""
        self.finish_reason = "length"
        return Delta(self.stream.advance(final=True), None, None, "length", (), self._told())

    def _told(self) -> tuple[ReadToken, ...]:
        told, self._read_back = self._read_back, ()
        return told


def ends_of(request: GenerationRequest, backbone: Backbone) -> frozenset[int]:
    return frozenset(request.stop_ids) | (frozenset() if request.ignore_end else backbone.stop_ids)


def likeliest(place: Place, count: int) -> tuple[TokenLogprob, ...]:
    """vLLM tells the token that stands there too, which may be a less likely one."""
    ranked = sorted(place.items(), key=lambda told: (-told[1].logprob, told[0]))
    return tuple(TokenLogprob(token_id, told.logprob) for token_id, told in ranked[:count])


def _read(token_id: int, place: Place | None, count: int) -> ReadToken:
    return ReadToken(token_id, None) if place is None else ReadToken(token_id, place[token_id].logprob, likeliest(place, count))
