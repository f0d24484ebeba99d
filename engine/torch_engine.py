"""The PyTorch engine: one frozen backbone, many named profiles, rows of all of them in one batch."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from adapters.adapter import Prompt, Stack
from adapters.backbone import Backbone
from engine.bank import BASE, AdapterBank, BankLimits
from engine.constraint import CompiledGrammar, Grammars
from engine.counts import Counts
from engine.decoding.row_policy import COMPILED, CompiledPolicy
from engine.engine import Completion, Continuation, Delta, EngineStats, GenerationRequest
from engine.errors import EngineError, NotFinite, PromptTooLong, UnknownProfile
from engine.inspect import INSPECT, Inspector
from engine.limits import Limits
from engine.line import Order, by_priority
from engine.listening import deltas_of
from engine.loading import refuse_unservable
from engine.loop import StepLoop
from engine.oracle import Oracle, Router
from engine.profile import DecodingPolicy, Profile
from engine.prompt_reading import PromptReader, ReadAs
from engine.row import Listener, Row
from engine.sampling import Sampler
from engine.scheduler import Scheduler
from engine.text import TextStream
from engine.text_reading import TextReader
from engine.token_choice import TokenChoice
from engine.token_rules import refuse_unknown_ids
from engine.twin import Precision, Twin
from engine.voting import elected, elected_stream, voters_of

T = TypeVar("T")
MAX_COMPILED = 256  # policies whose token ids are kept looked up: requests may bring their own


class TorchEngine:
    """Calls come from any thread. Until the first `generate`, work runs in the caller's; from then on in the step loop's."""

    def __init__(
        self,
        backbone: Backbone,
        max_rows: int = 32,
        precision: Precision | None = None,
        max_batch_tokens: int = 4096,
        max_cache_tokens: int = 65536,
        prefill_chunk_tokens: int = 256,
        max_prefix_tokens: int = 0,
        order: Order = by_priority,
        clock: Callable[[], float] = time.monotonic,
        bank: BankLimits | None = None,
    ) -> None:
        """The limits are those of `engine.limits` and of the bank; `order` says who joins first of those that wait."""
        self.backbone = backbone
        self._twin = Twin(backbone, precision)
        twin = self._twin
        self._bank = AdapterBank(twin.linears(), twin.dtype, twin.layers, backbone.hidden_size, twin.groups, bank)
        self._profiles: dict[str, Profile] = {}
        self._sources: dict[str, int] = {}  # of loaded names; see engine.prefix.Reader
        self._last_source = 0
        self._limits = Limits(max_rows, max_batch_tokens, max_cache_tokens, prefill_chunk_tokens, max_prefix_tokens)
        self._new_scheduler = partial(Scheduler, self._twin, self._bank, self._limits, order=order, clock=clock)
        self._compiled = lru_cache(MAX_COMPILED)(partial(CompiledPolicy.of, backbone=backbone))
        self._lock = threading.RLock()
        self._num_threads = torch.get_num_threads()
        self._scheduler = self._new_scheduler(prefill_chunk_tokens)
        self._loop: StepLoop | None = None
        self._counts = Counts()  # of calls that ran without the loop
        self._readings: Counter[str] = Counter()  # of texts that are read under a name now
        self._counting = threading.Lock()
        self._grammars = Grammars(backbone)
        reading = (self._run, self._step_tokens, self._using)
        self._texts = TextReader(self._twin, self._bank, *reading, self._prompt, self._router)
        self._reader = PromptReader(backbone, self._twin, self._bank, *reading, self._read_as)

    def start(self) -> None:
        """The thread that steps begins now, and not with the first stream; see engine.own_thread."""
        self._started_loop().call(lambda: None).result()

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"lora", "softcot", "steering", "score", "generate", INSPECT, "routing", *COMPILED})

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._profiles)

    def load(self, name: str, profile: Profile) -> None:
        """Atomic. A name that has rows in flight is not replaced."""
        if not name:
            raise EngineError("A profile needs a name: the empty one is the backbone.")
        self._load(name, profile)

    def refresh(self, name: str) -> None:
        self._load(name, self.profile(name))

    def profile(self, name: str) -> Profile:
        if name not in self._profiles:
            known = ", ".join(sorted(self._profiles)) or "none"
            raise UnknownProfile(f"No profile is loaded under {name!r}. Loaded: {known}. Load it first.")
        return self._profiles[name]

    def unload(self, name: str) -> None:
        """Refused while the name has rows in flight: wait for them, or close their iterators."""

        def work() -> None:
            self.profile(name)
            self._refuse_busy(name)
            self._bank.unload(name)
            self._forget(name)
            for counts in (self._counts, self._scheduler.counts):
                counts.forget(name)
            del self._profiles[name]

        self._run(work)

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        asks = request.num_prompt_logprobs is not None
        return self._reader.stream(request, self._elected) if asks else self._elected(request)

    async def _elected(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        compiled = None if request.grammar is None else await self._grammars.prepare(request.grammar)
        voters = self._voters(request)
        if len(voters) == 1:
            async with aclosing(self._written(voters[0], compiled)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        for delta in await elected_stream([self._written(voter) for voter in voters]):
            yield delta

    def _written(self, request: GenerationRequest, compiled: CompiledGrammar | None = None) -> AsyncGenerator[Delta, None]:
        """One row's deltas; closing it frees the row."""

        def submit(listener: Listener) -> Row:
            row = self._row(request, secrets.randbits(63) if request.seed is None else request.seed, compiled)
            row.listener = listener
            self._scheduler.submit(row)
            return row

        return deltas_of(self._started_loop(), submit)

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        asks = any(request.num_prompt_logprobs is not None for request in requests)
        return self._reader.complete(requests, self._completed) if asks else self._completed(requests)

    def _completed(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        seeds = [index if request.seed is None else request.seed for index, request in enumerate(requests)]
        voters = [self._voters(request) for request in requests]
        rows: list[Row] = []

        def submit(scheduler: Scheduler) -> None:
            # Made and submitted in one piece: between the two a name could be unloaded, and its row would be the backbone's.
            rows.extend(self._row(voter, seed) for each, seed in zip(voters, seeds, strict=True) for voter in each)
            # The longest first: a batch then holds rows of like length, and ends with short ones.
            scheduler.submit(*sorted(rows, key=lambda row: -row.max_length))

        if self._loop is not None:
            self._loop.wait_for(lambda: submit(self._scheduler), lambda: all(row.is_finished for row in rows))
        else:
            with self._lock:
                # A scheduler of its own, so that the same call gives the same bits; nobody waits for a step, so whole prompts.
                scheduler = self._new_scheduler()
                submit(scheduler)
                while scheduler.is_busy:
                    scheduler.step()
                self._counts += scheduler.counts
        written = (row.completion() for row in rows)
        return [elected([next(written) for _ in each]) for each in voters]

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        return self._texts.score(continuations, profile) if continuations else []

    def hidden_states(
        self, continuations: Sequence[Continuation], profiles: Sequence[str | None], layers: Sequence[int]
    ) -> list[Tensor]:
        return self._texts.hidden_states(continuations, profiles, layers)

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        counts = self._counts + scheduler.counts.snapshot()
        return EngineStats(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting,
            generated_tokens=dict(counts.generated),
            prompt_tokens=counts.prefilled,
            steered_tokens=dict(counts.steered),
            beside_tokens=counts.beside,
            scored_tokens=self._texts.num_tokens + self._reader.num_tokens,
            scored_tokens_unshared=self._texts.num_tokens_unshared + self._reader.num_tokens_unshared,
            cached_tokens=counts.cached,
            steps=counts.steps,
            decode_rows=counts.decode_rows,
            mixes=dict(counts.mixes),
            cache_tokens=scheduler.cache_tokens,
            prefix_tokens=scheduler.prefixes.num_tokens,
            bank=self._bank.stats(),
        )

    def close(self) -> None:
        """Ends what runs, and lets go of the twin's hooks. The backbone was never touched."""
        self._reader.close()
        self._grammars.close()
        if self._loop is not None:
            self._loop.close()
        with self._lock:
            self._scheduler.fail(EngineError("The engine was closed while this request ran. Send it again."))
            self._bank.close()
            self._profiles.clear()

    def _run(self, work: Callable[[], T]) -> T:
        """In the step loop's thread when there is one, else here."""
        if self._loop is not None and not self._loop.is_here:
            return self._loop.call(work).result()
        with self._lock:
            return work()

    def _step_tokens(self) -> int:
        """How many tokens one forward may hold: while rows may stream, no more than a step's share of prompts."""
        return self._limits.max_batch_tokens if self._loop is None else self._limits.prefill_chunk_tokens

    @contextmanager
    def _using(self, *names: str) -> Iterator[None]:
        """Inside, these names are not unloaded and not replaced, though they have no rows."""
        with self._counting:
            self._readings.update(names)
        try:
            yield
        finally:
            with self._counting:
                self._readings -= Counter(names)  # those that none is read of are forgotten

    def _started_loop(self) -> StepLoop:
        with self._counting:  # requests of several event loops may come first together
            if self._loop is None:
                self._loop = StepLoop(self._scheduler, self._lock, self._num_threads)
            return self._loop

    def _load(self, name: str, profile: Profile) -> None:
        # Checked and copied in the caller's thread: rows that run are held up for no longer than the copy is put in its place.
        packed = self._bank.pack(name, Stack(profile.adapters).contribution())

        def work() -> None:
            self._refuse_busy(name)
            refuse_unservable(name, profile, self.backbone, self.capabilities)
            self._compiled(profile.policy)
            self._bank.put(name, packed, {row.name for row in self._scheduler.running})
            self._forget(name)
            if not packed.is_empty:
                self._last_source += 1
                self._sources[name] = self._last_source
            self._profiles[name] = profile

        self._run(work)

    def _forget(self, name: str) -> None:
        """What the name's weights have read."""
        source = self._sources.pop(name, None)
        if source is not None:
            self._scheduler.prefixes.drop(source)

    def _refuse_busy(self, name: str) -> None:
        count = self._scheduler.rows_of(name) + self._readings[name]
        if count:
            raise EngineError(
                f"A profile changes only while no request uses it, but {name!r} has {count} in flight. "
                "Wait for them, or load under another name."
            )

    def _voters(self, request: GenerationRequest) -> list[GenerationRequest]:
        return voters_of(request, 1 if request.profile is None else self.profile(request.profile).num_chains)

    def _row(self, request: GenerationRequest, seed: int, compiled: CompiledGrammar | None = None) -> Row:
        policy = self._policy(request)
        refuse_unknown_ids(request, self.backbone.embeddings.num_embeddings)
        temperature = policy.temperature if request.temperature is None else request.temperature
        top_p = policy.top_p if request.top_p is None else request.top_p
        num_more = len(request.begun_ids) + request.max_new_tokens
        prompt = self._prompt(request.prompt_ids, request.profile, num_more, request.chain or 0)
        ends = frozenset(request.stop_ids) | (frozenset() if request.ignore_end else self.backbone.stop_ids)
        policy = policy if request.grammar is None else policy.under_grammar(self.backbone)
        constraint = self._grammars.constraint(request, compiled)
        read = replace(prompt, ids=(*prompt.ids, *request.begun_ids))
        router, source = self._router(request.profile), self._sources.get(request.profile or BASE, 0)
        row = Row(
            name=request.profile or BASE,
            prompt=read if router is None else Prompt((*request.prompt_ids, *request.begun_ids)),
            prompt_tokens=len(request.prompt_ids) + len(request.begun_ids),
            max_new_tokens=request.max_new_tokens,
            stop_ids=ends,
            sampler=Sampler.seeded(temperature, top_p, seed, request.top_k, request.min_p),
            stream=TextStream(self.backbone.decode, request.stop, request.begun_ids, request.includes_stop),
            asked=TokenChoice.of(request, ends, constraint),
            includes_stop=request.includes_stop,
            min_new_tokens=request.min_new_tokens,
            policy=self._compiled(policy).for_row(request.begun_ids, request.max_new_tokens, request.prompt_ids),
            num_top=request.top_logprobs,
            source=source if router is None else 0,
            cache_salt=request.cache_salt,
            priority=request.priority,
            deadline=request.deadline,
        )
        if router is not None:
            row.oracle = Oracle(row, router, read, request.begun_ids, source)
        return row

    def _read_as(self, request: GenerationRequest) -> ReadAs:
        """Of a routed row the prompt as it is, under the backbone."""
        router, policy = self._router(request.profile), self._policy(request)
        profile = None if router else request.profile
        num_more = len(request.begun_ids) + request.max_new_tokens
        prompt = self._prompt(request.prompt_ids, profile, num_more, request.chain or 0)
        return ReadAs(profile or BASE, prompt, router is None and not policy.interventions)

    def _policy(self, request: GenerationRequest) -> DecodingPolicy:
        return request.policy or (Profile() if request.profile is None else self.profile(request.profile)).policy

    def _router(self, profile: str | None) -> Router | None:
        """None where the profile's adapters write themselves."""
        routing = None if profile is None else self.profile(profile).routing
        return None if routing is None else Router(routing, self.backbone.decode)

    def _prompt(self, ids: tuple[int, ...], profile: str | None, num_more: int, chain: int = 0) -> Prompt:
        if not ids:
            raise ValueError("A prompt has at least one token. Begin it with the chat template or the beginning-of-text token.")
        self._refuse_too_long(len(ids), num_more)
        if profile is None:
            return Prompt(ids)
        # Not inference mode: a fit may use the assistant's states that are cached here.
        with torch.no_grad():
            prompt = self.profile(profile).transform(self.backbone, ids, chain)
        if prompt.soft_KH is not None and not torch.isfinite(prompt.soft_KH).all():
            raise NotFinite(f"Soft thoughts must be finite, but profile {profile!r} gave NaN or infinity. Fit it again.")
        self._refuse_too_long(len(prompt.ids), num_more)
        soft_KH = None if prompt.soft_KH is None else prompt.soft_KH.detach()
        return replace(prompt, soft_KH=soft_KH)

    def _refuse_too_long(self, num_prompt: int, num_more: int) -> None:
        limit = self.backbone.context_length
        if num_prompt + num_more > limit:
            raise PromptTooLong(
                f"Prompt and completion together take at most {limit} tokens on {self.backbone.name!r}, but got "
                f"{num_prompt} and {num_more}. Shorten the prompt or ask for fewer tokens."
            )


if TYPE_CHECKING:
    _: Inspector = TorchEngine(Backbone.load(""))
