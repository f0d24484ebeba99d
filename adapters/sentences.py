"""Sentences of a reply while it is read, and the mean hidden state of the one that is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

# Legend: H hidden

_ENDS = (".", "!", "?")


class SentenceMean:
    """Takes a reply token by token. A sentence begins after a line's end, or with a space after a full stop.

    What reads the prompt's last token is a sentence of its own: nothing of the reply is known there.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._last: int | None = None
        self._sum_H: Tensor | None = None
        self._count = 0
        self.has_begun = True  # with the last token that was taken

    def take(self, token_id: int | None, state_H: Tensor) -> Tensor:
        """The mean over the open sentence, [H], with the state that reads this token; None is the prompt's last one."""
        self.has_begun = token_id is None or self._last is None or self._begins(self._last, token_id)
        if self.has_begun or self._sum_H is None:
            self._sum_H, self._count = state_H.float(), 1
        else:
            self._sum_H, self._count = self._sum_H + state_H.float(), self._count + 1
        self._last = token_id
        return self._sum_H / self._count

    def _begins(self, before: int, token_id: int) -> bool:
        first = self._decode([before])
        if "\n" in first:
            return True
        return first.rstrip("\"')]").endswith(_ENDS) and self._decode([before, token_id])[len(first) :][:1].isspace()
