"""One request while it runs: what it has written, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from adapters.adapter import Prompt
from engine.bank import BASE
from engine.decoding.row_policy import RowPolicy
from engine.engine import Completion, Delta, FinishReason, TokenLogprob
from engine.oracle import Oracle
from engine.sampling import Sampler
from engine.text import TextStream

# Legend: V vocabulary


@dataclass(eq=False)
class Row:
    """`name` is the profile's name, or the bank's BASE. `listener` is told every delta, or the error that ended the row.

    With an oracle the row itself is the backbone's, and the adapters read beside it.
    """

    name: str
    prompt: Prompt
    prompt_tokens: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    sampler: Sampler
    stream: TextStream
    policy: RowPolicy | None = None  # None: no interventions
    oracle: Oracle | None = None  # None: the adapters write themselves
    num_top: int = 0  # of the likeliest tokens that are kept at every place
    listener: Callable[[Delta | Exception], None] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False  # set from any thread; obeyed before the next step

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def adapters(self) -> str:
        """The name in the bank that it computes under."""
        return self.name if self.oracle is None else BASE

    @property
    def seats(self) -> tuple[Row | Oracle, ...]:
        """What takes a place of the batch each."""
        return (self,) if self.oracle is None else (self, self.oracle)

    @property
    def last_id(self) -> int:
        return self.token_ids[-1] if self.token_ids else self.prompt.ids[-1]

    @property
    def length(self) -> int:
        """Places in the cache once the last token has been read."""
        return len(self.prompt.ids) + len(self.token_ids)

    @property
    def max_length(self) -> int:
        return len(self.prompt.ids) + self.max_new_tokens

    def choose(self, logits_V: Tensor) -> int:
        return self.sampler.choose(logits_V) if self.policy is None else self.policy.choose(self.sampler, logits_V)

    def take(self, token_id: int, logprob: float) -> None:
        """One more token; the row finishes on a stop token, a stop text or its last allowed token."""
        if self.policy is not None:
            self.policy.take(token_id)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.stream.add(token_id)
        ended = token_id in self.stop_ids
        over = None if self.policy is None else self.policy.finish_reason
        final = ended or over is not None or len(self.token_ids) == self.max_new_tokens
        needed = final or self.listener is not None or self.stream.has_stop
        text = self.stream.advance(final=final) if needed else ""
        if ended or self.stream.stopped:
            self.finish_reason = "stop"
        elif final:
            self.finish_reason = over or "length"
        self.texts.append(text)
        self._tell(Delta(text, token_id, logprob, self.finish_reason, self.tops[-1] if self.tops else ()))

    def cancel(self) -> None:
        self.finish_reason = "cancelled"
        self._tell(Delta("", None, None, "cancelled"))

    def fail(self, error: Exception) -> None:
        self.error = error
        self._tell(error)

    def completion(self) -> Completion:
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None
        return Completion(
            "".join(self.texts),
            tuple(self.token_ids),
            tuple(self.logprobs),
            self.finish_reason,
            self.prompt_tokens,
            tuple(self.tops),
        )

    def _tell(self, said: Delta | Exception) -> None:
        if self.listener is not None:
            self.listener(said)
