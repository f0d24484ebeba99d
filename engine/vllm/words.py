"""The backbone's vocabulary without its weights: for the process in which vLLM chooses tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from adapters.token_text import TokenText
from engine.decoding.vocabulary import Vocabulary


@dataclass(frozen=True)
class Words(TokenText):
    name: str
    stop_ids: frozenset[int]
    device: torch.device = torch.device("cpu")

    @classmethod
    def load(cls, directory: str, name: str, stop_ids: Iterable[int], device: torch.device) -> Words:
        return cls(AutoTokenizer.from_pretrained(directory), name, frozenset(stop_ids), device)


if TYPE_CHECKING:
    _: Vocabulary = Words.load("", "", (), torch.device("cpu"))
