"""A backbone's vocabulary as bytes: what each token writes, and the table over which grammars are followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import llguidance
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adapters.errors import AdapterError


class NoVocabulary(AdapterError):
    """A tokenizer whose tokens cannot be read as bytes."""


class Vocabulary:
    """The table takes a second to make, once, when it is first needed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int]) -> None:
        """`ends`: the tokens that end a text. Ids from the tokenizer's own to `size` write nothing."""
        self._tokenizer, self.size, self._ends = tokenizer, size, sorted(ends)

    @cached_property
    def table(self) -> llguidance.LLTokenizer:
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            raise NoVocabulary(
                f"Tokens are read as bytes off a fast tokenizer, but this backbone's is a {type(self._tokenizer).__name__}. "
                "Leave out grammars and log-probabilities."
            )
        try:
            return from_tokenizer(self._tokenizer, self.size, self._ends)
        except ValueError as error:
            raise NoVocabulary(
                f"Tokens are read as bytes by llguidance, which cannot read this backbone's tokenizer: {error}. "
                "Leave out grammars and log-probabilities."
            ) from error

    @property
    def added(self) -> Mapping[str, int]:
        """Names that are one token each, wherever they stand in a text."""
        found: Mapping[str, int] = self._tokenizer.get_added_vocab()
        return found

    def prepare(self) -> None:
        """Makes the table, where it is not there yet: not in a thread that others wait for."""
        assert self.table

    def bytes_of(self, token_id: int) -> bytes:
        """What the token writes, a special token its name."""
        found = self.table.decode_bytes([token_id])
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "").encode() if found.startswith(b"\xff") else found
