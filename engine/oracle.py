"""The oracle of a routed row: a second place in the batch, where the profile's adapters read what the row has written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.adapter import Prompt
from adapters.routing import Routing
from adapters.sentences import SentenceMean
from engine.prefix import Reader, Text

if TYPE_CHECKING:
    from engine.row import Row

# Legend: T tokens, H hidden


@dataclass(frozen=True)
class Router:
    """What a loaded profile's routing does on this backbone."""

    routing: Routing
    decode: Callable[[Sequence[int]], str]

    @property
    def read_layer(self) -> int:
        return self.routing.spec.read_layer

    def means(self, tokens: Iterable[int | None], states_TH: Iterable[Tensor]) -> list[Tensor]:
        """Of a whole reply: the mean of the open sentence at every place; the first token is None, the prompt's end."""
        sentence = SentenceMean(self.decode)
        return [sentence.take(token, state_H) for token, state_H in zip(tokens, states_TH, strict=True)]

    def shift(self, mean_H: Tensor, own: int, adapted: int, text: Sequence[int]) -> Tensor | None:
        """After these tokens, the prompt's and the reply's; None where the row is left alone."""
        return self.routing.shift(mean_H, own, adapted, " ".join(map(str, text)))


@dataclass(eq=False)
class Oracle:
    """Writes nothing; joins and leaves with its row. `begun_ids`: how the row's reply begins, the last ids of both prompts."""

    row: Row
    router: Router
    prompt: Prompt
    begun_ids: tuple[int, ...]
    source: int = 0  # of the adapters' weights; see engine.prefix.Reader
    read: int = 0  # places of the prompt that are in the cache
    sentence: SentenceMean = field(init=False)
    _seen: list[Tensor] = field(default_factory=list)  # states of the prompt's last places, chunk by chunk

    def __post_init__(self) -> None:
        self.sentence = SentenceMean(self.router.decode)

    @property
    def adapters(self) -> str:
        """The name in the bank that it computes under."""
        return self.row.name

    @cached_property
    def reads(self) -> Text:
        return Text.of(self.prompt, self.reader, self.router.read_layer)

    @property
    def reader(self) -> Reader:
        return Reader(self.source, self.row.cache_salt)

    @property
    def written(self) -> Sequence[int]:
        return self.row.token_ids

    @property
    def to_read(self) -> int:
        return len(self.prompt.ids) - self.read

    @property
    def held(self) -> int:
        """Places in the cache that are its own."""
        return self.read + len(self.written)

    @property
    def most_cached(self) -> int:
        """How many of its first places may come from where another request left them: states are read at the others."""
        return len(self.prompt.ids) - 1 - len(self.begun_ids)

    @property
    def is_finished(self) -> bool:
        return self.row.is_finished

    @property
    def error(self) -> Exception | None:
        return self.row.error

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.row.token_ids)

    @property
    def max_length(self) -> int:
        return len(self.prompt.ids) + self.row.max_new_tokens

    @property
    def last_id(self) -> int:
        return self.row.last_id

    def see(self, states_TH: Tensor) -> None:
        """What the read layer put out at the next places of the prompt, or at the one token that was written last."""
        count = len(states_TH) if self.row.token_ids else min(len(states_TH), max(0, self.read - self.most_cached))
        if count:
            self._seen.append(states_TH[len(states_TH) - count :])

    def shift(self, own: int, adapted: int) -> Tensor | None:
        """At the place that was seen last, of which `own` and `adapted` are the likeliest next tokens."""
        row, written = self.row, self.row.token_ids
        tokens: Sequence[int | None] = written[-1:] or (None, *self.begun_ids)
        states_TH = torch.cat(self._seen)
        self._seen.clear()
        for token, state_H in zip(tokens, states_TH, strict=True):
            mean_H = self.sentence.take(token, state_H)
        return self.router.shift(mean_H, own, adapted, (*row.prompt.ids, *written))
