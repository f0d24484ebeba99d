"""Text from tokens as they come: whole characters only, and nothing that may yet become a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_CONTEXT = 8  # tokens of a beginning; a character takes four at most


class TextStream:
    """`add` tokens, `advance` to get the text that is certain by now."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
        begun: Sequence[int] = (),
        includes_stop: bool = False,
    ) -> None:
        """The text of the `begun` tokens, which stand before, is not given again; a stop text is, if `includes_stop`."""
        self._includes_stop = includes_stop
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = list(begun[-_CONTEXT:])
        self._context = 0  # tokens from here on are decoded again, since a token's text depends on the one before
        self._read = len(self._ids)  # tokens before this one are in the text
        self._held = ""
        self.stopped = False

    @property
    def has_stop(self) -> bool:
        return bool(self._stop)

    def add(self, token_id: int) -> None:
        self._ids.append(token_id)

    def advance(self, *, final: bool = False, watch: bool = True) -> str:
        """The text since the last call; with `final`, all that is left except a character that never became whole.

        Without `watch` no stop text is looked for in it, now or later.
        """
        if self.stopped:
            return ""
        self._held += self._fresh(final)
        places = [(place, text) for text in self._stop if (place := self._held.find(text)) >= 0] if watch else []
        if places:
            self.stopped = True
            place, found = min(places)
            text, self._held = self._held[: place + len(found) if self._includes_stop else place], ""
            return text
        keep = self._open_stop() if watch and not final else 0
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _fresh(self, final: bool) -> str:
        if self._read == len(self._ids):
            return ""
        known = self._decode(self._ids[self._context : self._read]).rstrip(_INCOMPLETE)
        whole = self._decode(self._ids[self._context :])
        if whole.endswith(_INCOMPLETE):
            if not final:
                return ""
            whole = whole.rstrip(_INCOMPLETE)
        self._context, self._read = self._read, len(self._ids)
        return whole[len(known) :]

    def _open_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = min(len(self._held), max((len(text) for text in self._stop), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0
