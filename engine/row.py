"""One request while it runs: what it has written, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from adapters.adapter import Prompt
from engine.bank import BASE
from engine.decoding.row_policy import RowPolicy
from engine.engine import Completion, Delta, FinishReason, Journey, TokenLogprob
from engine.errors import BadGrammar
from engine.oracle import Oracle
from engine.prefix import Reader, Text
from engine.sampling import Sampler
from engine.text import TextStream
from engine.token_choice import TokenChoice

# Legend: V vocabulary

Listener = Callable[[Delta | Exception], bool]  # False: nobody listens any more


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
    asked: TokenChoice | None = None  # None: the request says nothing of its tokens
    includes_stop: bool = False  # the text that ends it is returned
    min_new_tokens: int = 0  # no stop text is looked for before
    oracle: Oracle | None = None  # None: the adapters write themselves
    num_top: int = 0  # of the likeliest tokens that are kept at every place
    source: int = 0  # of the weights that it reads with; see engine.prefix.Reader
    cache_salt: str = ""
    priority: int = 0
    deadline: float | None = None
    submitted_at: float = 0.0
    listener: Listener | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cancelled: bool = False  # set from any thread; obeyed before the next step
    read: int = 0  # places of the prompt that are in the cache
    cached: int = 0  # of them, those that another request had read
    passed: int = 0  # rows that came later and joined before
    joined_at: float | None = None
    first_at: float | None = None  # when it wrote its first token

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def adapters(self) -> str:
        """The name in the bank that it computes under."""
        return self.name if self.oracle is None else BASE

    @property
    def row(self) -> Row:
        """As its oracle has one."""
        return self

    @property
    def seats(self) -> tuple[Row | Oracle, ...]:
        """What takes a place of the batch each."""
        return (self,) if self.oracle is None else (self, self.oracle)

    @cached_property
    def reads(self) -> Text:
        return Text.of(self.prompt, self.reader)

    @property
    def reader(self) -> Reader:
        return Reader(self.source, self.cache_salt)

    @property
    def to_read(self) -> int:
        return len(self.prompt.ids) - self.read

    @property
    def held(self) -> int:
        """Places in the cache that are its own."""
        return self.read + len(self.written)

    @property
    def most_cached(self) -> int:
        """How many of its first places may come from where another request left them."""
        return len(self.prompt.ids) - 1

    @property
    def written(self) -> Sequence[int]:
        return self.token_ids

    @property
    def journey(self) -> Journey | None:
        """None while it waits."""
        if self.joined_at is None:
            return None
        first = None if self.first_at is None else self.first_at - self.submitted_at
        return Journey(self.joined_at - self.submitted_at, first, self.cached)

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
        """0 where the row fails at it."""
        try:
            if self.asked is not None:
                logits_V = self.asked.biased(logits_V)
            if self.policy is not None:
                logits_V = self.policy.adjust(logits_V)
            if self.asked is not None:
                logits_V = self.asked.allowed(logits_V)
        except BadGrammar as error:  # of this row alone
            self.fail(error)
            return 0
        token_id = self.sampler.choose(logits_V)
        return token_id if self.policy is None else self.policy.force(token_id)

    def take(self, token_id: int, logprob: float) -> None:
        """One more token; the row finishes on a stop token, a stop text or its last allowed token. Nothing of a failed row."""
        if self.error is not None:
            return
        if self.policy is not None:
            self.policy.take(token_id)
        if self.asked is not None:
            try:
                self.asked.take(token_id)
            except BadGrammar as error:
                self.fail(error)
                return
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        ended = token_id in self.stop_ids
        if not ended or self.includes_stop:
            self.stream.add(token_id)
        over = None if self.policy is None else self.policy.finish_reason
        final = ended or over is not None or len(self.token_ids) == self.max_new_tokens
        needed = final or self.listener is not None or self.stream.has_stop
        text = self.stream.advance(final=final, watch=len(self.token_ids) > self.min_new_tokens) if needed else ""
        if ended or self.stream.stopped:
            self.finish_reason = "stop"
        elif final:
            self.finish_reason = over or "length"
        self.texts.append(text)
        journey = self.journey if len(self.token_ids) == 1 or self.is_finished else None
        self._tell(Delta(text, token_id, logprob, self.finish_reason, self.tops[-1] if self.tops else (), journey=journey))

    def cancel(self) -> None:
        self.finish_reason = "cancelled"
        self._tell(Delta("", None, None, "cancelled", journey=self.journey))

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
            journey=self.journey,
        )

    def _tell(self, said: Delta | Exception) -> None:
        if self.listener is not None and not self.listener(said):
            self.cancelled = True
        if self.is_finished:
            # Whom it told need not be kept with it, and a cycle would stay until the collector comes by.
            self.listener = self.oracle = None
