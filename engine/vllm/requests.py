"""A request in vLLM's words: what it reads, and how it draws."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch
from vllm import SamplingParams
from vllm.inputs import EmbedsPrompt, TokensPrompt
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from adapters.adapter import Prompt
from engine.engine import GenerationRequest
from engine.errors import CannotRun
from engine.grammar import Grammar
from engine.profile import DecodingPolicy
from engine.sampling import refuse_undrawable
from engine.vllm.chosen import FIELD, Asked

# Legend: T tokens, H hidden

_TAIL = 64  # tokens of a prompt, of which the last may begin a chain of thought


def prompt_of(prompt: Prompt, salt: str, dtype: torch.dtype) -> TokensPrompt | EmbedsPrompt:
    """`salt` keeps what one content has read from every other's prefixes, beside what vLLM does for a LoRA by its name."""
    if prompt.soft_KH is None:
        return TokensPrompt(prompt_token_ids=list(prompt.ids), cache_salt=salt)
    count, (num_soft, width) = len(prompt.ids), prompt.soft_KH.shape
    soft = slice(prompt.soft_at, prompt.soft_at + num_soft)
    embeds_TH = torch.zeros(count, width, dtype=dtype)
    embeds_TH[soft] = prompt.soft_KH.detach().to("cpu", dtype)
    is_token = [not soft.start <= place < soft.stop for place in range(count)]
    return EmbedsPrompt(prompt_embeds=embeds_TH, prompt_token_ids=list(prompt.ids), prompt_is_token_ids=is_token, cache_salt=salt)


def params_of(
    request: GenerationRequest, policy: DecodingPolicy, ends: frozenset[int], seed: int | None, added: Mapping[str, int]
) -> SamplingParams:
    """Under a policy's interventions our processor draws, and vLLM takes the one token that it leaves.

    `added`: names that the tokenizer reads as one token each.
    """
    temperature = policy.temperature if request.temperature is None else request.temperature
    top_p = policy.top_p if request.top_p is None else request.top_p
    refuse_undrawable(temperature, top_p)
    drawing: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
    }
    common: dict[str, Any] = {
        "max_tokens": max(1, request.max_new_tokens),
        "min_tokens": request.min_new_tokens,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,  # the ends are those above
        "logprobs": request.top_logprobs,
        "prompt_logprobs": request.num_prompt_logprobs,
        "logit_bias": dict(request.logit_bias) or None,
        "structured_outputs": None if request.grammar is None else _held_to(request.grammar, request, added),
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
    }
    if policy.interventions:
        asked = Asked(
            key=uuid4().hex,
            policy=policy.model_copy(update={"branches": None, "tracing": None}),
            prompt_ids=request.prompt_ids if request.repetition_penalty != 1 else request.prompt_ids[-_TAIL:],
            begun_ids=request.begun_ids,
            max_new_tokens=request.max_new_tokens,
            seed=secrets.randbits(63) if seed is None else seed,
            **drawing,
        )
        return SamplingParams(temperature=0.0, extra_args=extra(asked), **common)
    return SamplingParams(seed=seed, **drawing, **common)


def forcing(ids: tuple[int, ...], *, reads_prompt: bool) -> SamplingParams:
    """These tokens stand, and are told with the log-probabilities that the model gave them."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=len(ids),
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0 if reads_prompt else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra(Asked(key=uuid4().hex, forced_ids=ids)),
    )


def extra(asked: Asked) -> Mapping[str, str]:
    return {FIELD: asked.model_dump_json(exclude_defaults=True)}


def _held_to(grammar: Grammar, request: GenerationRequest, added: Mapping[str, int]) -> StructuredOutputsParams:
    if request.begun_ids:
        rule = "On vLLM a grammar holds a reply from its first token, but this one is begun already"
        raise CannotRun(f"{rule}. Leave one out.", "grammar")
    match grammar.kind:
        case "json_schema":
            return StructuredOutputsParams(json=grammar.texts[0])
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "regex":
            return StructuredOutputsParams(regex=grammar.texts[0])
        case "choice" | "tagged_json":
            return StructuredOutputsParams(grammar=grammar.lark(added))
