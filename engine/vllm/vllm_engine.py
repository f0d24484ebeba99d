"""The engine protocol on vLLM: one process that computes, many named profiles, rows of all of them in one batch."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch

from adapters.adapter import Contribution, Prompt
from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.weights import digest_of
from engine.bank import BASE
from engine.counts import without
from engine.decoding.row_policy import COMPILED, CompiledPolicy, refuse_unable
from engine.engine import Completion, Continuation, Delta, Engine, EngineStats, GenerationRequest, Mortal
from engine.errors import CannotRun, EngineDied, EngineError, NotFinite, PromptTooLong, UnknownProfile
from engine.profile import DecodingPolicy, Profile
from engine.vllm.gate import admitted
from engine.vllm.loop_thread import LoopThread
from engine.vllm.options import VLLMOptions
from engine.vllm.reply import Reply
from engine.voting import elected, elected_stream, voters_of

if TYPE_CHECKING:
    from engine.vllm.client import Client
    from engine.vllm.lora_slots import Held

MAX_COMPILED = 256


@dataclass(frozen=True)
class Loaded:
    profile: Profile
    held: Held | None  # None: no LoRA, or the backbone where vLLM may be asked for it without one
    salt: str  # of what vLLM keeps of prompts


class VLLMEngine:
    """Calls come from any thread. What soft thoughts are made of is computed here, by the backbone's own lower layers."""

    def __init__(self, backbone: Backbone, options: VLLMOptions | None = None) -> None:
        """Blocks until vLLM has loaded the backbone: half a minute and more."""
        from engine.vllm.client import Client

        self.backbone, self.options = backbone, options or VLLMOptions()
        self._compiled = lru_cache(MAX_COMPILED)(partial(CompiledPolicy.of, backbone=backbone))
        self._loading = threading.Lock()
        self._counting = threading.Lock()
        self._running: Counter[str] = Counter()
        self._generated: Counter[str] = Counter()
        self._not_finite: set[str] = set()
        self._thread = LoopThread("graftline-vllm")
        try:
            self._client: Client = self._thread.run(Client.start(backbone, self.options))
        except BaseException:
            self._thread.close()
            raise
        self._loaded: dict[str, Loaded] = {}
        self._base = Loaded(Profile(), self._client.base, "base")

    @property
    def capabilities(self) -> frozenset[str]:
        soft = {"softcot"} if self.options.has_soft_prompts else set[str]()
        return frozenset({"lora", "score", "generate", "grammar", *soft, *COMPILED})

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def death(self) -> str | None:
        """Why nothing is computed any more; None while it lives. vLLM does not come back: start another process."""
        if self._client.is_dead:
            return "vLLM's process has ended. Start the service again; its log says why it ended."
        if len(self._not_finite) > 1:
            names = " and ".join(repr(name or self.backbone.name) for name in sorted(self._not_finite))
            return (
                f"vLLM's memory holds NaN, which {names} have met: what it writes from now on cannot be trusted. "
                "Start the service again."
            )
        return None

    def load(self, name: str, profile: Profile) -> None:
        """Atomic. A name that has rows in flight is not replaced."""
        if not name:
            raise EngineError("A profile needs a name: the empty one is the backbone.")
        with self._loading:
            self._refuse_busy(name)
            refuse_unable(profile.policy, self.capabilities, "the vLLM engine", profile.routing)
            self._compiled(profile.policy)
            contribution = admitted(name, profile, self.backbone, self.options.max_lora_rank)
            self._refuse_dead()
            held = self._hold(name, contribution) if contribution.low_rank else self._base.held
            loaded = Loaded(profile, held, _salt(profile))
            try:
                before = self._replaced(name, loaded)
            except EngineError:
                self._let_go(loaded)
                raise
            self._let_go(before)

    def refresh(self, name: str) -> None:
        self.load(name, self.profile(name))

    def profile(self, name: str) -> Profile:
        return self._of(name).profile

    def unload(self, name: str) -> None:
        """Refused while the name has rows in flight: wait for them, or close their iterators."""
        with self._loading:
            self._of(name)
            self._let_go(self._replaced(name, None))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        voters = self._voters(request)
        if len(voters) == 1:
            async with aclosing(self._written(voters[0])) as deltas:
                async for delta in deltas:
                    yield delta
            return
        for delta in await elected_stream([self._written(voter) for voter in voters]):
            yield delta

    async def _written(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """One row's deltas, in the caller's event loop; closing it ends the row in vLLM."""
        heard: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()
        here = asyncio.get_running_loop()

        async def write() -> None:
            try:
                async with aclosing(self._deltas(request)) as deltas:
                    async for delta in deltas:
                        here.call_soon_threadsafe(heard.put_nowait, delta)
                here.call_soon_threadsafe(heard.put_nowait, None)
            except asyncio.CancelledError:
                with suppress(RuntimeError):  # who asked is gone with his event loop
                    here.call_soon_threadsafe(
                        heard.put_nowait, EngineError("The engine was closed while this request ran. Send it again.")
                    )
                raise
            except Exception as error:
                here.call_soon_threadsafe(heard.put_nowait, error)

        writing = self._thread.start(write())
        try:
            while (said := await heard.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                yield said
        finally:
            writing.cancel()

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """In one batch as far as it fits. Not bit for bit: vLLM's sums hang on what else is in the batch."""
        seeded = [request if request.seed is not None else replace(request, seed=place) for place, request in enumerate(requests)]
        voters = [self._voters(request) for request in seeded]
        found = iter(self._thread.run(self._completions([voter for each in voters for voter in each])))
        return [elected([next(found) for _ in each]) for each in voters]

    async def _completions(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        found = await asyncio.gather(*map(self._completion, requests), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if isinstance(one, Completion)]

    async def _completion(self, request: GenerationRequest) -> Completion:
        async with aclosing(self._deltas(request)) as deltas:
            return Completion.of(request, [delta async for delta in deltas])

    async def _deltas(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """In the client's event loop."""
        name = request.profile or BASE
        with self._using(request.profile) as loaded:
            self._refuse_dead()
            self._refuse_not_finite(name)
            policy = self._policy(request, loaded)
            # Soft thoughts take a forward of some layers: the rows that write must not wait for it.
            prompt = await asyncio.to_thread(self._prompt, request, loaded)
            row_policy = self._compiled(policy).for_row(request.begun_ids, request.max_new_tokens, request.prompt_ids)
            reply = Reply.to(request, self.backbone, row_policy)
            with self._computing(name):
                async with aclosing(self._client.write(request, policy, reply, prompt, loaded.held, loaded.salt)) as deltas:
                    async for delta in deltas:
                        with self._counting:  # a name may be unloaded, or the counts read, in another thread
                            self._generated[name] += delta.token_id is not None
                        yield delta

    def score(self, continuations: Sequence[Continuation], profile: str | None = None) -> list[tuple[float, ...]]:
        """vLLM reads a prefix again wherever more than one token after it is asked for."""
        name = profile or BASE
        with self._using(profile) as loaded:
            self._refuse_dead()
            self._refuse_not_finite(name)
            asked = [self._scored(continuation, loaded) for continuation in continuations]
            with self._computing(name):
                return self._thread.run(self._client.score(asked, loaded.held, loaded.salt))

    def stats(self) -> EngineStats:
        counts = self._client.counts
        with self._counting:
            running, generated = self._running.total(), dict(self._generated)
        return EngineStats(
            running=running,
            generated_tokens={name: count for name, count in generated.items() if count},
            prompt_tokens=counts["prompt"],
            scored_tokens=counts["scored"],
            scored_tokens_unshared=counts["scored_unshared"],
            cached_tokens=counts["cached"],
        )

    def close(self) -> None:
        """Ends what runs, and vLLM's process."""
        self._thread.run(self._client.close())
        self._thread.close()
        self._loaded.clear()

    @contextmanager
    def _using(self, profile: str | None) -> Iterator[Loaded]:
        """Inside, the name keeps its weights."""
        name = profile or BASE
        with self._counting:
            loaded = self._at(profile)
            self._running[name] += 1
        try:
            yield loaded
        finally:
            with self._counting:
                self._running[name] -= 1

    @contextmanager
    def _computing(self, name: str) -> Iterator[None]:
        """NaN that vLLM computes lies in its memory, and is remembered."""
        try:
            yield
        except NotFinite:
            self._not_finite.add(name)
            raise

    def _of(self, name: str) -> Loaded:
        if name not in self._loaded:
            known = ", ".join(sorted(self._loaded)) or "none"
            raise UnknownProfile(f"No profile is loaded under {name!r}. Loaded: {known}. Load it first.")
        return self._loaded[name]

    def _at(self, profile: str | None) -> Loaded:
        return self._base if profile is None else self._of(profile)

    def _hold(self, name: str, contribution: Contribution) -> Held:
        try:
            return self._thread.run(self._client.slots.hold(name, contribution))
        except RefusedAdapter:
            self._refuse_dead()  # no fault of the adapter
            raise

    def _let_go(self, gone: Loaded | None) -> None:
        if gone is not None and gone.held is not None and gone.held is not self._base.held:
            self._thread.run(self._client.slots.let_go(gone.held))

    def _replaced(self, name: str, by: Loaded | None) -> Loaded | None:
        """What the name meant before; refused where a request has come for that meanwhile."""
        with self._counting:
            self._refuse_busy(name)
            before = self._loaded.get(name)
            if by is None:
                del self._loaded[name], self._running[name]
                self._generated = without(name, self._generated)
            else:
                self._loaded[name] = by
            if self.death is None:  # what spoilt the memory has left it spoilt
                self._not_finite.discard(name)
            return before

    def _policy(self, request: GenerationRequest, loaded: Loaded) -> DecodingPolicy:
        policy = request.policy or loaded.profile.policy
        if request.grammar is not None:
            policy = policy.under_grammar(self.backbone)
            if self.backbone.begins_chain(request.prompt_ids):
                raise CannotRun(
                    "On vLLM a grammar holds a reply from its first token, but this prompt begins a chain of thought. Have the "
                    "template begin none, leave the grammar out, or use the PyTorch engine.",
                    "grammar",
                )
        refuse_unable(policy, self.capabilities, "the vLLM engine")
        return policy

    def _prompt(self, request: GenerationRequest, loaded: Loaded) -> Prompt:
        """What the backbone reads before the reply goes on."""
        prompt = self._transformed(request.prompt_ids, loaded, request.chain or 0)
        if prompt.soft_KH is not None and request.num_prompt_logprobs is not None:
            raise CannotRun(
                f"vLLM tells no log-probabilities of a prompt with soft thoughts, but {request.profile!r} has them. "
                "Leave out the echo, or use the PyTorch engine.",
                "num_prompt_logprobs",
            )
        read = replace(prompt, ids=(*prompt.ids, *request.begun_ids))
        self._refuse_too_long(len(read.ids), max(1, request.max_new_tokens))
        return read

    def _scored(self, asked: Continuation, loaded: Loaded) -> tuple[Prompt, tuple[int, ...]]:
        """What is read before, and the tokens whose log-probabilities are asked for."""
        asked.refuse_unscored()
        prompt, first = self._transformed(asked.prompt_ids, loaded), asked.scored_from
        self._refuse_too_long(len(prompt.ids), len(asked.ids))
        return replace(prompt, ids=(*prompt.ids, *asked.ids[:first])), asked.ids[first:]

    def _transformed(self, ids: tuple[int, ...], loaded: Loaded, chain: int = 0) -> Prompt:
        if not ids:
            raise ValueError("A prompt has at least one token. Begin it with the chat template or the beginning-of-text token.")
        with torch.no_grad():
            prompt = loaded.profile.transform(self.backbone, ids, chain) if loaded.profile.adapters else Prompt(ids)
        if prompt.soft_KH is not None and not torch.isfinite(prompt.soft_KH).all():
            raise NotFinite("Soft thoughts must be finite, but a profile gave NaN or infinity. Fit it again.")
        return prompt

    def _voters(self, request: GenerationRequest) -> list[GenerationRequest]:
        return voters_of(request, self._at(request.profile).profile.num_chains)

    def _refuse_too_long(self, num_prompt: int, num_more: int) -> None:
        limit = self._client.max_length
        if num_prompt + num_more > limit:
            raise PromptTooLong(
                f"Prompt and completion together take at most {limit} tokens on {self.backbone.name!r}, but got "
                f"{num_prompt} and {num_more}. Shorten the prompt or ask for fewer tokens."
            )

    def _refuse_busy(self, name: str) -> None:
        if self._running[name]:
            raise EngineError(
                f"A profile changes only while no request uses it, but {name!r} has {self._running[name]} in flight. "
                "Wait for them, or load under another name."
            )

    def _refuse_dead(self) -> None:
        if self.death is not None:
            raise EngineDied(self.death)

    def _refuse_not_finite(self, name: str) -> None:
        if name in self._not_finite:
            raise NotFinite(f"{name or self.backbone.name!r} has written NaN and is not asked again. Load another version.")


def _salt(profile: Profile) -> str:
    """Equal for equal soft thoughts; what a LoRA changes vLLM tells apart by itself."""
    digests = [adapter.digest() for adapter in profile.adapters if hasattr(adapter, "digest")]
    return digest_of({}, *digests)[:16]


if TYPE_CHECKING:
    _: Engine = VLLMEngine(Backbone.load(""))
    __: Mortal = VLLMEngine(Backbone.load(""))
