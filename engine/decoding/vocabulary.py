"""What a decoding policy reads of a backbone: its tokenizer, its ends, and where its logits lie. A backbone has it all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from adapters.markers import Markers


class Vocabulary(Protocol):
    """Without the weights: whoever chooses tokens in another process has it too."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def device(self) -> torch.device:
        """Of the logits."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def markers(self) -> Markers | None: ...

    def begins_chain(self, prompt_ids: Sequence[int]) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...
