"""The oracle of a routed row: a second place in the batch, where the profile's adapters read what the row has written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from adapters.adapter import Prompt
from adapters.routing import Routing
from adapters.sentences import SentenceMean

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
    sentence: SentenceMean = field(init=False)

    def __post_init__(self) -> None:
        self.sentence = SentenceMean(self.router.decode)

    @property
    def adapters(self) -> str:
        """The name in the bank that it computes under."""
        return self.row.name

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

    def shift(self, states_TH: Tensor, own: int, adapted: int) -> Tensor | None:
        """`states_TH`: those of the read layer up to the place that `own` and `adapted` are the likeliest next tokens of."""
        row, written = self.row, self.row.token_ids
        tokens: Sequence[int | None] = written[-1:] or (None, *self.begun_ids)
        for token, state_H in zip(tokens, states_TH[-len(tokens) :], strict=True):
            mean_H = self.sentence.take(token, state_H)
        return self.router.shift(mean_H, own, adapted, (*row.prompt.ids, *written))
