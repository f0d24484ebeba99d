"""What the engine says to vLLM, in the one event loop that vLLM's client lives in."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from uuid import uuid4

import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from adapters.adapter import Prompt
from adapters.backbone import Backbone
from engine.engine import Delta, GenerationRequest
from engine.errors import BadGrammar, CannotRun, EngineDied, EngineError, NotFinite, TimedOut
from engine.profile import DecodingPolicy
from engine.vllm.files import zero_update
from engine.vllm.lora_slots import Held, LoRASlots, reason
from engine.vllm.options import VLLMOptions
from engine.vllm.reply import Reply
from engine.vllm.requests import forcing, params_of, prompt_of
from engine.vllm.start import dtype_of, runs_on_cpu, start

Scored = tuple[Prompt, tuple[int, ...]]  # what is read before, and the tokens that are asked about
_GRACE_S = 10.0


class Client:
    def __init__(self, llm: AsyncLLM, dtype: torch.dtype, max_scored: int, added: Mapping[str, int]) -> None:
        """`added`: see `params_of`."""
        self._llm, self._dtype, self._added = llm, dtype, added
        self._scoring = asyncio.Semaphore(max_scored)
        self.slots = LoRASlots(self._add, llm.remove_lora)
        self.base: Held | None = None
        self.max_length = int(llm.model_config.max_model_len)
        self.counts: Counter[str] = Counter()

    @classmethod
    async def start(cls, backbone: Backbone, options: VLLMOptions) -> Client:
        llm = await start(backbone, options)
        client = cls(llm, getattr(torch, dtype_of(backbone, options)), 2 * options.max_rows, backbone.vocabulary.added)
        if runs_on_cpu():
            # There a row without a LoRA computes with whichever lies in the last slot, so the base has one too: of zeros. Not
            # pinned: vLLM's scheduler counts on every slot, and a batch without the base would have one too few, which ends it.
            client.base = await client.slots.hold("base", zero_update(backbone))
        return client

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    async def write(
        self, request: GenerationRequest, policy: DecodingPolicy, reply: Reply, prompt: Prompt, held: Held | None, salt: str
    ) -> AsyncGenerator[Delta, None]:
        """Until the reply is over, which may be before vLLM would end it; leaving ends the row there."""
        params = params_of(request, policy, reply.ends, request.seed, self._added)
        salt = f"{salt}/{request.cache_salt}" if request.cache_salt else salt
        try:
            async with asyncio.timeout(_left(request.deadline)):
                async with aclosing(self._outputs(prompt, params, held, salt, request.priority)) as outputs:
                    async for output in outputs:
                        if reply.num_tokens == 0:
                            self._count("prompt", len(prompt.ids), output)
                        for delta in _deltas_of(output, reply, prompt):
                            yield delta
                        if reply.finish_reason is not None:
                            return
        except TimeoutError as error:
            raise TimedOut("A request ends at its deadline, but this one was past it while it ran. Ask for less.") from error
        except VLLMClientError as error:
            if request.grammar is None:
                raise CannotRun(f"vLLM refused this request: {reason(error)} Ask for something else.", None) from error
            raise BadGrammar(f"The grammar ({request.grammar.kind}) cannot be followed: {_told(error)} Correct it.") from error
        if reply.finish_reason is None:
            yield reply.end()

    async def score(self, asked: Sequence[Scored], held: Held | None, salt: str) -> list[tuple[float, ...]]:
        return await asyncio.gather(*(self._scored(prompt, ids, held, salt) for prompt, ids in asked))

    async def close(self) -> None:
        self._llm.shutdown(timeout=_GRACE_S)
        self.slots.close()

    async def _scored(self, prompt: Prompt, ids: tuple[int, ...], held: Held | None, salt: str) -> tuple[float, ...]:
        """The last token is forced, and those before it are read as a prompt: or forced too, where soft thoughts forbid that."""
        forced = ids if prompt.soft_KH is not None else ids[-1:]
        read = Prompt((*prompt.ids, *ids[: len(ids) - len(forced)]), prompt.soft_KH, prompt.soft_at)
        params = forcing(forced, reads_prompt=len(forced) < len(ids))
        found: list[float] = []
        async with self._scoring, aclosing(self._outputs(read, params, held, salt, 0)) as outputs:
            async for output in outputs:
                if output.prompt_logprobs and not found:
                    places = zip(read.ids[len(prompt.ids) :], output.prompt_logprobs[len(prompt.ids) :], strict=True)
                    found += [place[token_id].logprob for token_id, place in places]
                told = output.outputs[0]
                found += [place[token_id].logprob for token_id, place in zip(told.token_ids, told.logprobs, strict=True)]
                if output.finished:
                    self._count("scored", len(read.ids) + len(forced) - 1, output)
        self.counts["scored_unshared"] += len(read.ids) + len(forced) - 1
        if not all(map(_is_finite, found)):
            raise NotFinite("Logits must be finite, but those of a profile held NaN or infinity. Fit it again.")
        return tuple(found)

    async def _outputs(
        self, prompt: Prompt, params: SamplingParams, held: Held | None, salt: str, priority: int
    ) -> AsyncGenerator[RequestOutput, None]:
        """What vLLM says, its errors as the engine's."""
        lora = None if held is None else _request(held)
        try:
            told = self._llm.generate(
                prompt_of(prompt, salt, self._dtype), params, uuid4().hex, lora_request=lora, priority=priority
            )
            async with aclosing(told) as outputs:
                async for output in outputs:
                    yield output
        except EngineDeadError as error:
            raise EngineDied("vLLM's process ended while this request ran. Start the service again.") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM failed at this request: {reason(error.__cause__ or error)} Send it again.") from error

    def _count(self, kind: str, num_read: int, output: RequestOutput) -> None:
        cached = output.num_cached_tokens or 0
        self.counts[kind] += num_read - cached
        self.counts["cached"] += cached

    async def _add(self, name: str, number: int, path: str) -> object:
        return await self._llm.add_lora(LoRARequest(name, number, path))


def _request(held: Held) -> LoRARequest:
    return LoRARequest(held.name, held.number, str(held.files.directory))


def _deltas_of(output: RequestOutput, reply: Reply, prompt: Prompt) -> list[Delta]:
    if output.prompt_logprobs:
        reply.read(prompt.ids, output.prompt_logprobs)
    told, deltas = output.outputs[0], list[Delta]()
    if reply.request.max_new_tokens == 0:
        return [reply.end()]
    for token_id, place in zip(told.token_ids, told.logprobs or (), strict=True):
        deltas.append(reply.take(token_id, place))
        if reply.finish_reason is not None:
            break
    return deltas


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _told(error: Exception) -> str:
    """The library's own words, on one line."""
    return f"{' '.join(str(error).split()).rstrip('.')}."


def _is_finite(value: float) -> bool:
    return value - value == 0
