"""The trace of one row while it is written: how long it is, how its text ends, and whether the answer has begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT = 4  # tokens beside those of the end's own characters: a token's text depends on the ones before


class Trace:
    """Open until its `end` stands in the text, however that is tokenized; what follows is the answer.

    A trace with a `begin` is one only where the reply starts with that: until this is certain it is open, and not `begun`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], end: str, begin: str = "") -> None:
        self._decode, self._end, self._begin = decode, end, begin
        self._head: list[int] = []
        self._window = len(end.encode()) + _CONTEXT
        self._last: list[int] = []
        self.tail = ""  # the text of the last tokens
        self.num_tokens = 0  # of the trace
        self.num_answer_tokens = 0
        self.answer_has_line_end = False  # of its first line that holds text: a model may write blank ones behind the end
        self._answer_has_text = False
        self.is_open = True

    @property
    def in_word(self) -> bool:
        return self.tail[-1:].isalpha()

    @property
    def closing(self) -> str:
        """What is missing of a line with the end: the end itself, its rest where it has begun, a new line before it else.

        Before them what is missing of the beginning.
        """
        if self._begin:
            return f"{self._begin[len(self._start) :]}\n{self._end}"
        line = self._line
        return self._end[len(line) :] if self._end.startswith(line) else f"\n{self._end}"

    @property
    def rest_of_end(self) -> str:
        """What would complete an end that the text may have begun, on a line of its own or within one; empty where it has not."""
        sizes = range(len(self._end) - 1, 0, -1)
        return next((self._end[size:] for size in sizes if self.tail.endswith(self._end[:size])), "")

    @property
    def at_line_start(self) -> bool:
        return not self._line

    def take(self, token_id: int) -> None:
        if not self.is_open:
            self._take_answer([token_id])
            return
        self.num_tokens += 1
        if self._begin:
            self._head.append(token_id)
            if self._start.startswith(self._begin):
                self._begin = ""
            elif not self._begin.startswith(self._start):
                self.is_open, self.num_tokens = False, 0
                self._take_answer(self._head)
                return
        self._last = [*self._last[1 - self._window :], token_id]
        self.tail = self._decode(self._last)
        self.is_open = self._end not in self.tail

    def _take_answer(self, ids: Sequence[int]) -> None:
        self.num_answer_tokens += len(ids)
        written = self._decode(ids)
        self.answer_has_line_end |= "\n" in (written if self._answer_has_text else written.lstrip())
        self._answer_has_text |= bool(written.strip())

    @property
    def _start(self) -> str:
        """What has been written of the beginning, or of what stands in its place."""
        return self._decode(self._head).lstrip()

    @property
    def _line(self) -> str:
        """The line that is being written; without its beginning where it is longer than the end."""
        return self.tail.rpartition("\n")[2]
