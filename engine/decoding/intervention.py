"""What acts on one row while it is written: a part of a decoding policy, with a state of its own for every row."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.decoding.trace import Trace

# Legend: V vocabulary


class Intervention(Protocol):
    """Each step: `adjust` once, then a token is drawn, then `force`, then `take` of what is written, after the trace took it."""

    def adjust(self, logits_V: Tensor, trace: Trace) -> Tensor:
        """What the next token is drawn from. `logits_V` is never written to; it comes back as it is where nothing changes."""
        ...

    def force(self, drawn: int, trace: Trace) -> int:
        """The token that is written: the drawn one, or another that must stand there."""
        ...

    def take(self, token_id: int, trace: Trace) -> None: ...


class Compiled(Protocol):
    """A part of a policy with its token ids looked up, once for all rows."""

    def for_row(self, max_tokens: int) -> Intervention:
        """`max_tokens`: what the row may write in all, with the ids that its reply began with."""
        ...
