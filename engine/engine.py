"""The engine protocol: many named profiles over one backbone, written from and scored in one batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from engine.errors import EngineError
from engine.grammar import Grammar
from engine.token_rules import MAX_TOP_LOGPROBS as MAX_TOP_LOGPROBS
from engine.token_rules import refuse_out_of_range

if TYPE_CHECKING:
    from engine.profile import DecodingPolicy, Profile

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class GenerationRequest:
    """One completion. None: as the profile's policy says. Temperature 0 is greedy. ValueError where a value is out of range.

    `begun_ids` is how the reply begins: it is read after the prompt as the profile transforms that (soft thoughts do not depend
    on it), and is not returned.

    `chain` is which of the profile's sets of soft thoughts is read. None: a profile with several writes a reply under each, and
    the completion is the one that the majority of their answers elects; see engine.voting.

    What changes the logits acts in vLLM's order: `logit_bias`, the decoding policy, the penalties as they stand here, what
    `min_new_tokens` and `grammar` forbid, `temperature`, `min_p`, `top_k`, `top_p`. The log-probabilities that are reported are
    the model's own, before all of it.

    `priority` decides who joins first of those that wait (the smaller, then who came first), but nobody is passed for ever.
    `deadline` is a time of the engine's clock (`time.monotonic`): a request past it ends with TimedOut. Requests of different
    `cache_salt` never share what was kept of their prompts, so that no tenant learns from the time what another has asked.
    """

    prompt_ids: tuple[int, ...]
    profile: str | None = None  # None: the backbone
    max_new_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()  # texts; matched across token borders and not returned
    begun_ids: tuple[int, ...] = ()
    top_logprobs: int = 0  # how many of the likeliest tokens the completion lists at every place, at most 20
    policy: DecodingPolicy | None = None  # None: the profile's
    chain: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids with what is added to their logits, from -100 to 100
    repetition_penalty: float = 1.0  # of tokens in the prompt or the reply: a logit above 0 is divided by it, else multiplied
    frequency_penalty: float = 0.0  # subtracted once for each time that the token stands in the reply
    presence_penalty: float = 0.0  # subtracted once where it does
    min_new_tokens: int = 0  # before so many no end, no token of `stop_ids` is drawn, and no stop text looked for
    grammar: Grammar | None = None  # what it forbids stays forbidden; it goes before `min_new_tokens`, and there is no budget
    top_k: int = 0  # only the likeliest so many are drawn from; 0: all
    min_p: float = 0.0  # only what is at least so likely as this share of the likeliest is drawn from
    stop_ids: tuple[int, ...] = ()  # tokens that end the reply as the backbone's own ends do: listed, without their text
    ignore_end: bool = False  # the backbone's own ends are tokens like others; `stop_ids` and `stop` still end the reply
    includes_stop: bool = False  # the stop text, or the text of the token from `stop_ids`, is returned
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""
    num_prompt_logprobs: int | None = None
    """The first delta gives the log-probability of every token of the prompt, and beside each the likeliest so many, at most 20.

    With it `max_new_tokens` may be 0: nothing is written then. None: not read back.
    """

    def __post_init__(self) -> None:
        refuse_out_of_range(self)


@dataclass(frozen=True)
class Journey:
    """How a request went through the engine; seconds since it was submitted."""

    waited_s: float  # until it joined the batch
    first_token_s: float | None = None  # None: it has written nothing
    cached_tokens: int = 0  # of its prompt, that another request had read


class TokenLogprob(NamedTuple):
    """Natural log, of the model before temperature and before any intervention of the decoding policy: what `score` gives too."""

    token_id: int
    logprob: float


class ReadToken(NamedTuple):
    """A token of the prompt: how likely the model held it after all that it reads before it. None: nothing stands before it."""

    token_id: int
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()  # of this place, likeliest first


@dataclass(frozen=True)
class Delta:
    """One step of one request. `text` may be empty while a character or a stop text is incomplete."""

    text: str
    token_id: int | None
    logprob: float | None  # natural log, of the model before temperature and interventions
    finish_reason: FinishReason | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()  # of this place; empty unless asked for
    prompt: tuple[ReadToken, ...] = ()  # of a request's first delta alone, where it asks for it: prompt_ids, then begun_ids
    journey: Journey | None = field(default=None, compare=False)  # with the first token and with the end, where it is known


@dataclass(frozen=True)
class Completion:
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()  # one entry a token, likeliest first; empty unless asked for
    prompt: tuple[ReadToken, ...] = ()  # prompt_ids, then begun_ids; empty unless asked for
    journey: Journey | None = field(default=None, compare=False)  # no part of what was written

    @classmethod
    def of(cls, request: GenerationRequest, deltas: Sequence[Delta]) -> Completion:
        """What a stream that was read to its end has written; EngineError where it has no end."""
        if not deltas or deltas[-1].finish_reason is None:
            raise EngineError(f"A stream ends with a finish reason, but this one stopped after {len(deltas)} deltas. Ask again.")
        told = [(one.token_id, one.logprob) for one in deltas if one.token_id is not None and one.logprob is not None]
        return cls(
            "".join(delta.text for delta in deltas),
            tuple(token_id for token_id, _ in told),
            tuple(logprob for _, logprob in told),
            deltas[-1].finish_reason,
            len(request.prompt_ids) + len(request.begun_ids),
            tuple(delta.top_logprobs for delta in deltas) if request.top_logprobs else (),
            deltas[0].prompt,
            journey=deltas[-1].journey,
        )


@dataclass(frozen=True)
class Continuation:
    """What `score` is asked: the log-probability of `ids[scored_from:]` after `prompt_ids` and the ids before.

    `prompt_ids` is what the profile transforms: soft thoughts depend on it, and not on `ids`. Of several sets the first is read.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    scored_from: int = 0

    def refuse_unscored(self) -> None:
        """ValueError where no token is asked for."""
        first, count = self.scored_from, len(self.ids)
        if not 0 <= first < count:
            raise ValueError(f"`0 <= scored_from < len(ids)` must hold, but got {first} and {count}. Ask for at least one token.")


@dataclass(frozen=True)
class BankStats:
    """Of the engine's low-rank adapters: those loaded, and those whose weights stand where forwards read them."""

    resident: int = 0
    loaded: int = 0  # profiles
    is_resident: Mapping[str, bool] = field(default_factory=dict)  # by profile name, as are the next three: those loaded now
    hits: Mapping[str, int] = field(default_factory=dict)  # rows whose adapter was resident when they joined
    loads: Mapping[str, int] = field(default_factory=dict)  # times that it was not, and came in
    evictions: Mapping[str, int] = field(default_factory=dict)  # times that it had to leave for another
    resident_bytes: int = 0  # that the bank takes
    loaded_bytes: int = 0  # that loaded profiles take in main memory


@dataclass(frozen=True)
class EngineStats:
    running: int = 0
    waiting: int = 0
    generated_tokens: Mapping[str, int] = field(default_factory=dict)  # by loaded profile, "" is the backbone
    prompt_tokens: int = (
        0  # tokens of prompts, soft thoughts among them, that went through a forward for `complete` or `generate`
    )
    scored_tokens: int = 0  # tokens that went through a forward for `score`
    steered_tokens: Mapping[str, int] = field(default_factory=dict)  # of those generated under a routing, by profile name
    beside_tokens: int = 0  # that went through a forward for what routing reads beside its rows
    scored_tokens_unshared: int = 0  # tokens that a plain loop of forwards would have needed
    cached_tokens: int = 0  # of prompts, that went through no forward since another request had read them
    steps: int = 0
    decode_rows: int = 0  # rows times steps in which each wrote a token
    mixes: Mapping[int, int] = field(default_factory=dict)  # steps, by how many different profiles wrote in them
    cache_tokens: int = 0  # places that running rows take in the cache now
    prefix_tokens: int = 0  # places of prompts that are kept now
    bank: BankStats = field(default_factory=BankStats)

    @property
    def forward_tokens(self) -> int:
        """All that went through a forward so far."""
        return self.prompt_tokens + sum(self.generated_tokens.values()) + self.beside_tokens + self.scored_tokens


class Completes(Protocol):
    """What a decoding policy asks of an engine, or of whatever stands before one."""

    def profile(self, name: str) -> Profile:
        """What is loaded under the name; UnknownProfile when nothing is."""
        ...

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]: ...


class Engine(Completes, Protocol):
    """Rows of one batch may use different profiles; none sees another's weights."""

    def load(self, name: str, profile: Profile) -> None:
        """Makes the profile available under the name. Atomic.

        Refuses weights that are not finite, and (CannotRun) a decoding policy that it cannot run, by the name of the part.
        """
        ...

    def refresh(self, name: str) -> None:
        """Reads the live weights of a loaded profile again, after a training step."""
        ...

    def unload(self, name: str) -> None: ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Streams one completion; closing the iterator frees its row."""
        ...

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Runs the requests to their ends in shared batches; the same call gives the same results, bit for bit.

        A request without a seed draws with its place in the call as the seed. Raises the first error of a row.
        """
        ...

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        """Natural-log probability of every continuation token from `scored_from` on; shared prefixes are computed once."""
        ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Ends what runs, each with an error, and gives back what the engine holds."""
        ...


@runtime_checkable
class Mortal(Protocol):
    """An engine that another process computes for: it may end while this one lives."""

    @property
    def death(self) -> str | None:
        """Why every request is refused from now on; None while it lives."""
        ...
