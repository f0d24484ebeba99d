"""Text to token ids and back, and where in it a model thinks: what a tokenizer knows of a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from adapters.markers import Markers, markers_of, shown_specials


@dataclass(frozen=True)
class TokenText:
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def markers(self) -> Markers | None:
        """Between which it thinks; None: it writes its reasoning as plain text, or has none."""
        return markers_of(self.tokenizer)

    @cached_property
    def _shown(self) -> frozenset[int]:
        return shown_specials(self.tokenizer)

    def begins_chain(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a reply to the prompt starts inside a chain of thought, since the prompt ends with its beginning."""
        if self.markers is None:
            return False
        window = len(self.markers.begin.encode()) + 4
        return self.markers.are_open_in(self.decode(prompt_ids[-window:]))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text as it is: no special tokens are added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Iterable[int]) -> str:
        """Without special tokens; markers of a chain of thought or of a tool's call are text also where they are special."""
        if not self._shown:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        runs = groupby(ids, key=self._shown.__contains__)
        return "".join(str(self.tokenizer.decode(list(run), skip_special_tokens=not shown)) for shown, run in runs)
