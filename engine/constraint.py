"""A grammar at work: compiled once over the backbone's vocabulary, then followed by every row that is held to it.

The library is llguidance. Its limits are fuel, not time: what a hostile schema costs is bounded however busy the machine is.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import llguidance
import numpy as np
import torch
from torch import Tensor

from adapters.backbone import Backbone
from engine.decoding.trace import Trace
from engine.engine import GenerationRequest
from engine.errors import BadGrammar, EngineError
from engine.grammar import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Legend: V vocabulary

MAX_COMPILED = 64
CompiledGrammar = llguidance.LLMatcher
# About 20 ms for the first, 10 ms for a step; items are of the parser's rows.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=150_000,
    step_max_items=40_000,
    max_items_in_row=2_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Without a bound, a small model writes blanks until its last token.
_JSON: JsonCompileOptions = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}


class Grammars:
    """Compiles for one backbone; from any thread, and not in the one that steps. What was compiled last is kept."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, "graftline-grammar")  # what is hostile holds up grammars alone

    async def prepare(self, grammar: Grammar) -> CompiledGrammar:
        """As `compile`, without holding up the event loop. What is returned is had even where others have taken its place."""
        try:
            found = self._thread.submit(self.compile, grammar)
        except RuntimeError as error:  # of an executor that is shut down
            raise EngineError("The engine is closed. Make a new one.") from error
        try:
            return await asyncio.wrap_future(found)
        except asyncio.CancelledError:
            if self._is_closed and found.cancelled():
                raise EngineError("The engine was closed before this grammar was compiled. Ask again.") from None
            raise

    def close(self) -> None:
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Kept for the rows to come. BadGrammar where it cannot be compiled, with the library's reason."""
        with self._lock:
            compiled = self._kept.pop(grammar, None)
        compiled = compiled or self._compiled(grammar)
        with self._lock:
            self._kept[grammar] = compiled
            while len(self._kept) > MAX_COMPILED:
                self._kept.popitem(last=False)
        return compiled

    def constraint(self, asked: GenerationRequest, compiled: CompiledGrammar | None = None) -> Constraint | None:
        """For one row; None where the request has no grammar. BadGrammar also where what its reply begins with breaks it."""
        if asked.grammar is None:
            return None
        compiled = compiled or self.compile(asked.grammar)
        constraint = Constraint(compiled.deep_copy(), self._chain(asked.prompt_ids))
        for token_id in asked.begun_ids:
            constraint.take(token_id)
        return constraint

    def _chain(self, prompt_ids: Sequence[int]) -> Chain | None:
        """None on a backbone that does not think between markers."""
        markers = self._backbone.markers
        if markers is None:
            return None
        begin = self._backbone.encode(markers.begin)
        trace = Trace(self._backbone.decode, markers.end)
        return Chain(trace, begin[0] if len(begin) == 1 else None, is_begun=self._backbone.begins_chain(prompt_ids))

    def _compiled(self, grammar: Grammar) -> CompiledGrammar:
        try:
            source = _source(grammar, self._backbone.vocabulary.added)
        except ValueError as error:
            raise BadGrammar(f"The grammar ({grammar.kind}) cannot be read: {error}. Correct it.") from error
        matcher = llguidance.LLMatcher(self._backbone.vocabulary.table, source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise BadGrammar(f"The grammar ({grammar.kind}) cannot be followed: {_reason(matcher)}. Correct or simplify it.")
        return matcher


@dataclass
class Chain:
    """Between a backbone's markers, where no grammar holds: begun by the prompt, or by the reply's first token `begin_id`."""

    trace: Trace
    begin_id: int | None  # None: only a prompt begins it
    is_begun: bool

    @property
    def is_open(self) -> bool:
        return self.is_begun and self.trace.is_open


class Constraint:
    """One row's place in its grammar, which begins behind a chain of thought between markers, where there is one."""

    def __init__(self, matcher: CompiledGrammar, chain: Chain | None = None) -> None:
        self._matcher, self._chain = matcher, chain
        self._num_taken = 0

    def allowed_V(self, size: int) -> Tensor:
        """Which tokens may come next, the backbone's ends among them where the text may be over: [V] of bool, on the CPU."""
        if self._chain is not None and self._chain.is_open:
            return torch.ones(size, dtype=torch.bool)
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._broken()
        allowed_V = torch.from_numpy(np.unpackbits(packed, bitorder="little")[:size].astype(bool))
        if self._begins is not None:
            allowed_V[self._begins] = True
        return allowed_V

    def take(self, token_id: int) -> None:
        chain, begins = self._chain, self._begins
        self._num_taken += 1
        if chain is not None and begins == token_id:
            chain.is_begun = True
        if chain is not None and chain.is_open:
            chain.trace.take(token_id)
        elif not self._matcher.consume_token(token_id):
            raise self._broken()

    @property
    def _begins(self) -> int | None:
        """The token that may begin a chain here."""
        at_start = self._chain is not None and not self._chain.is_begun and self._num_taken == 0
        return self._chain.begin_id if at_start and self._chain is not None else None

    def _broken(self) -> BadGrammar:
        return BadGrammar(f"The reply cannot go on in its grammar: {_reason(self._matcher)}. Simplify the grammar.")


def _source(grammar: Grammar, added: Mapping[str, int]) -> str:
    match grammar.kind:
        case "json_schema":
            return llguidance.LLMatcher.grammar_from_json_schema(grammar.texts[0], overrides=_JSON)
        case "json_object":
            return llguidance.LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON)
        case "regex":
            return llguidance.LLMatcher.grammar_from_regex(grammar.texts[0])
        case "choice" | "tagged_json":
            return llguidance.LLMatcher.grammar_from_lark(grammar.lark(added))


def _reason(matcher: CompiledGrammar) -> str:
    """The library's own, on one line."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split()).rstrip(".") or "it allows nothing"
