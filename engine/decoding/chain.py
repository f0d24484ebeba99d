"""The chain of thought of a reply apart from its answer, where the backbone thinks between markers.

A chain is what the reply begins with: one block, or several with nothing but space between them. Once the answer has begun, a
marker in it is a word of the answer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from adapters.markers import KNOWN, Markers


class Parted(NamedTuple):
    """A piece of a reply, or all of it. The space around the markers belongs to neither."""

    chain: str
    answer: str


class ChainStream:
    """`add` text as it comes to get what is certain by now; a marker may come in any number of pieces."""

    def __init__(self, markers: Markers, is_open: bool) -> None:
        """`is_open`: the prompt has begun the chain."""
        self._markers = markers
        self._place: Literal["before", "inside", "answer"] = "inside" if is_open else "before"
        self._held = ""
        self._num_blocks = 0
        self._fresh = True  # nothing of this block was given yet

    def add(self, text: str) -> Parted:
        self._held += text
        chain = ""
        while True:
            if self._place == "answer":
                answer, self._held = self._held, ""
                return Parted(chain, answer)
            if self._place == "before":
                if not self._enter():
                    return Parted(chain, "")
                continue
            found, is_whole = self._inside()
            chain += found
            if not is_whole:
                return Parted(chain, "")

    def finish(self) -> Parted:
        """What was held back. A chain without its end was cut, so all that is left of it belongs to it."""
        held, self._held = self._held, ""
        if self._place == "inside":
            return Parted(self._separated(held.lstrip() if self._fresh else held), "")
        return Parted("", held.lstrip() if self._num_blocks else held)

    def _enter(self) -> bool:
        """Whether it is certain that a block begins here, or the answer."""
        begin, text = self._markers.begin, self._held.lstrip()
        if text.startswith(begin):
            self._place, self._held, self._fresh = "inside", text[len(begin) :], True
            return True
        if begin.startswith(text):
            return False
        self._place = "answer"
        self._held = text if self._num_blocks else self._held
        return True

    def _inside(self) -> tuple[str, bool]:
        """The certain text of the block, and whether its end was found."""
        end = self._markers.end
        if self._fresh:
            self._held = self._held.lstrip()
        text, mark, rest = self._held.partition(end)
        if mark:
            self._place, self._held = "before", rest
            given = self._separated(text.rstrip())
            self._num_blocks += 1
            return given, True
        size = next(size for size in range(min(len(end) - 1, len(text)), -1, -1) if text.endswith(end[:size]))
        certain = text[: len(text) - size].rstrip()
        self._held = text[len(certain) :]
        return self._separated(certain), False

    def _separated(self, text: str) -> str:
        """A blank line stands between two blocks."""
        if not text or not self._fresh:
            return text
        self._fresh = False
        return f"\n\n{text}" if self._num_blocks else text


def parted(text: str, markers: Markers, is_open: bool = False) -> Parted:
    """A whole reply."""
    stream = ChainStream(markers, is_open)
    first, last = stream.add(text), stream.finish()
    return Parted(first.chain + last.chain, first.answer + last.answer)


def parted_by_any(text: str) -> Parted | None:
    """A reply of which nothing but its text is known; None where it has no chain between markers.

    The end of a chain that its prompt had begun stands there without its beginning.
    """
    start = text.lstrip()
    for markers in KNOWN:
        if start.startswith(markers.begin):
            return parted(text, markers)
        before, end, _ = text.partition(markers.end)
        if end and markers.begin not in before:
            return parted(text, markers, is_open=True)
    return None
