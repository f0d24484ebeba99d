"""The trace of one row while it is written: how long it is, how its text ends, and whether the answer has begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT = 4  # tokens beside those of the end's own characters: a token's text depends on the ones before


class Trace:
    """Open until its `end` stands in the text, however that is tokenized; what follows is the answer."""

    def __init__(self, decode: Callable[[Sequence[int]], str], end: str) -> None:
        self._decode, self._end = decode, end
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
        """What is missing of a line with the end: the end itself, its rest where it has begun, a new line before it else."""
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
            self.num_answer_tokens += 1
            written = self._decode([token_id])
            self.answer_has_line_end |= "\n" in (written if self._answer_has_text else written.lstrip())
            self._answer_has_text |= bool(written.strip())
            return
        self.num_tokens += 1
        self._last = [*self._last[1 - self._window :], token_id]
        self.tail = self._decode(self._last)
        self.is_open = self._end not in self.tail

    @property
    def _line(self) -> str:
        """The line that is being written; without its beginning where it is longer than the end."""
        return self.tail.rpartition("\n")[2]
