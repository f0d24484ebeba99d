"""A budget at work on one row: the minimum, the ignored ends, the ramp and the cap with its forced answer cue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters.backbone import Backbone
from engine.decoding.budget import Budget
from engine.decoding.intervention import Compiled, Intervention
from engine.decoding.trace import Trace
from engine.decoding.vocabulary import Vocabulary
from engine.errors import CannotRun

# Legend: V vocabulary, E tokens that begin an end

RAMP_FROM = 0.9  # of the cap


@dataclass(frozen=True)
class CompiledBudget:
    spec: Budget
    backbone: Vocabulary
    num_end_tokens: int  # of a new line with the end
    cue: int  # the end's first token
    newline: int
    ends: frozenset[int]  # tokens that begin the end, or end the text

    @classmethod
    def of(cls, spec: Budget, backbone: Vocabulary, end: str) -> CompiledBudget:
        cue, newline = backbone.encode(end)[0], backbone.encode("\n")
        if (spec.min_trace_tokens or spec.num_ignored_ends or spec.ramp) and not _begins_only(backbone, cue, end):
            raise CannotRun(
                f"The policy's `budget` holds back or favours the first token of {end!r}, but on {backbone.name!r} that is "
                f"{backbone.decode([cue])!r}, with which other words begin too. Use the cap alone, or give another trace_end."
            )
        if spec.ramp and len(newline) != 1:
            raise CannotRun(
                f"The policy's `budget` favours the line's end, but that is {len(newline)} tokens on {backbone.name!r}. "
                "Leave the ramp out."
            )
        spaced = backbone.encode(f" {end}")[0]
        begins = {cue, spaced} if _begins_only(backbone, spaced, end) else {cue}
        ends = backbone.stop_ids | begins | _holding(backbone.tokenizer, end)
        return cls(spec, backbone, len(backbone.encode(f"\n{end}")), cue, newline[0], ends)

    @cached_property
    def ends_E(self) -> Tensor:
        return torch.tensor(sorted(self.ends), device=self.backbone.device)

    def for_row(self, max_tokens: int) -> RowBudget:
        return RowBudget(self, max_tokens)


class RowBudget:
    """One row's."""

    def __init__(self, compiled: CompiledBudget, max_tokens: int) -> None:
        spec, self._compiled = compiled.spec, compiled
        reserved = compiled.num_end_tokens + spec.max_answer_tokens if spec.reserves_answer else 0
        self._cap = None if spec.max_trace_tokens is None else max(0, min(spec.max_trace_tokens, max_tokens - reserved))
        self._min = spec.min_trace_tokens if self._cap is None else min(spec.min_trace_tokens, self._cap)
        self._to_ignore = spec.num_ignored_ends
        self._forced: list[int] = []

    def adjust(self, logits_V: Tensor, trace: Trace) -> Tensor:
        if not trace.is_open:
            return logits_V
        if trace.num_tokens < self._min or self._ignores(logits_V):
            held_V = logits_V.index_fill(0, self._compiled.ends_E, -torch.inf)
            # An end that was begun by another token than its own first one lacks its last.
            rest = self._compiled.backbone.encode(trace.rest_of_end)
            if len(rest) == 1:
                held_V[rest[0]] = -torch.inf
            return held_V
        bias = self._bias(trace)
        if not bias:
            return logits_V
        adjusted_V = logits_V.clone()
        adjusted_V[self._compiled.cue if trace.at_line_start else self._compiled.newline] += bias
        return adjusted_V

    def force(self, drawn: int, trace: Trace) -> int:
        if not self._forced and self._cap is not None and trace.is_open:
            # A reply that would be over without an answer is asked for it too.
            if trace.num_tokens >= self._cap or drawn in self._compiled.backbone.stop_ids:
                self._forced = self._compiled.backbone.encode(trace.closing)
        return self._forced[0] if self._forced else drawn

    def take(self, token_id: int, trace: Trace) -> None:
        self._forced = self._forced[1:]

    def _ignores(self, logits_V: Tensor) -> bool:
        """Whether ends are held back here; one is used up where the model's likeliest token begins an end."""
        if not self._to_ignore:
            return False
        self._to_ignore -= int(logits_V.argmax()) in self._compiled.ends
        return True

    def _bias(self, trace: Trace) -> float:
        if not self._cap or not self._compiled.spec.ramp:
            return 0.0
        start = RAMP_FROM * self._cap
        return self._compiled.spec.ramp * max(0.0, (trace.num_tokens + 1 - start) / (self._cap - start))


@lru_cache(64)  # a whole vocabulary is read, and every policy that a request narrows is compiled while rows run
def _holding(tokenizer: PreTrainedTokenizerBase, end: str) -> frozenset[int]:
    """The tokens that hold the whole end, as a vocabulary may that has whole instructions as tokens."""
    as_stored = "".join(tokenizer.convert_ids_to_tokens(tokenizer(end, add_special_tokens=False)["input_ids"]))
    return frozenset(token_id for token, token_id in tokenizer.get_vocab().items() if end in token or as_stored in token)


def _begins_only(backbone: Vocabulary, token_id: int, end: str) -> bool:
    """Whether the token holds the whole of the word that the end begins with, or without such a word a part of its beginning."""
    word, text = re.match(r"\w*", end), backbone.decode([token_id]).strip()
    assert word is not None
    if word[0]:
        return text.startswith(word[0])
    return bool(text) and (text.startswith(end) or end.startswith(text))


if TYPE_CHECKING:
    _: Compiled = CompiledBudget.of(Budget(), Backbone.load(""), "")
    __: Intervention = CompiledBudget.of(Budget(), Backbone.load(""), "").for_row(1)
