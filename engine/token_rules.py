"""The ranges of what a request says about its tokens: checked where a request is made, whatever engine takes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.engine import GenerationRequest

# A factor outside these only forbids or fixes tokens, and overflows on the way.
REPETITION_PENALTY = (0.01, 100.0)
PENALTY = (-2.0, 2.0)  # OpenAI's
BIAS = (-100.0, 100.0)  # OpenAI's
MAX_BIASED = 1024
MAX_STOP_IDS = 256
MAX_TOP_LOGPROBS = 20


def refuse_out_of_range(request: GenerationRequest) -> None:
    """ValueError with the field, its range and the value."""
    _refuse_bad_counts(request)
    _within("min_p", request.min_p, 0.0, 1.0)
    _within("presence_penalty", request.presence_penalty, *PENALTY)
    _within("frequency_penalty", request.frequency_penalty, *PENALTY)
    _within("repetition_penalty", request.repetition_penalty, *REPETITION_PENALTY)
    if request.top_k < 0:
        raise ValueError(f"top_k must be at least 0, but got {request.top_k}. Use 0 for all tokens.")
    _refuse_bad_bias(request.logit_bias)
    if request.min_new_tokens and not 0 < request.min_new_tokens <= request.max_new_tokens:
        raise ValueError(
            f"`0 <= min_new_tokens <= max_new_tokens` must hold, but got {request.min_new_tokens} and "
            f"{request.max_new_tokens}. Ask for fewer at least, or for more at most."
        )
    if len(request.stop_ids) > MAX_STOP_IDS or any(token_id < 0 for token_id in request.stop_ids):
        raise ValueError(f"stop_ids are at most {MAX_STOP_IDS} token ids, none below 0, but got {len(request.stop_ids)}.")
    if request.grammar is not None and request.ignore_end:
        raise ValueError("ignore_end goes on after the end that a grammar asks for. Leave out one of the two.")


def _refuse_bad_counts(request: GenerationRequest) -> None:
    least = 1 if request.num_prompt_logprobs is None else 0
    if request.max_new_tokens < least:
        raise ValueError(f"max_new_tokens must be at least {least}, but got {request.max_new_tokens}.")
    for name, count in (("top_logprobs", request.top_logprobs), ("num_prompt_logprobs", request.num_prompt_logprobs or 0)):
        if not 0 <= count <= MAX_TOP_LOGPROBS:
            raise ValueError(f"{name} must be at least 0 and at most {MAX_TOP_LOGPROBS}, but got {count}.")


def refuse_unknown_ids(request: GenerationRequest, vocabulary: int) -> None:
    """ValueError where a token id is none of a backbone with so many."""
    named = {"logit_bias": [token_id for token_id, _ in request.logit_bias], "stop_ids": request.stop_ids}
    for name, ids in named.items():
        if ids and max(ids) >= vocabulary:
            raise ValueError(f"Token ids are below {vocabulary} here, but {name} holds {max(ids)}. Use its own tokenizer.")


def _refuse_bad_bias(bias: tuple[tuple[int, float], ...]) -> None:
    ids = [token_id for token_id, _ in bias]
    if len(bias) > MAX_BIASED or len(set(ids)) < len(ids) or any(token_id < 0 for token_id in ids):
        raise ValueError(f"logit_bias holds at most {MAX_BIASED} different token ids, none below 0, but got {len(ids)} entries.")
    for token_id, value in bias:
        _within(f"logit_bias of token {token_id}", value, *BIAS)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be at least {low:g} and at most {high:g}, but got {value:g}.")
