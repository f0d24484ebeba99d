"""Fields that clients know and this service does not honour."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from service.shortened import shortened


class UnsupportedField(ValueError):
    """A known field with a value that this service does not honour; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


_Neutral = Mapping[str, tuple[str, Callable[[JsonValue], bool]]]
_FALSE = ("false", lambda value: value is False)
_TRUE = ("true", lambda value: value is True)
_EMPTY_OBJECT = ("an empty object", lambda value: value == {})
_EMPTY = ("an empty list", lambda value: value == [])
_LEFT_OUT = ("left out", lambda value: False)
# What each known but unsupported field may hold: its neutral value, which asks for nothing.
NEUTRAL: _Neutral = {
    "functions": _EMPTY,
    "function_call": ("'none' or 'auto'", lambda value: value in ("none", "auto")),
    "modalities": ("['text']", lambda value: value == ["text"]),
    "audio": _LEFT_OUT,
    "prediction": _LEFT_OUT,
    "web_search_options": _LEFT_OUT,
    "verbosity": ("'medium'", lambda value: value == "medium"),
    "suffix": ("left out or empty", lambda value: value == ""),
    "use_beam_search": _FALSE,
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "length_penalty": ("1", lambda value: value == 1),
    "early_stopping": _FALSE,
    "skip_special_tokens": _TRUE,
    "spaces_between_special_tokens": _TRUE,
    "return_tokens_as_token_ids": _FALSE,
    "return_token_ids": _FALSE,
    "prompt_logprobs": _LEFT_OUT,
    "prompt_embeds": _LEFT_OUT,
    "logits_processors": _LEFT_OUT,
    "guided_decoding_backend": _LEFT_OUT,
    "mm_processor_kwargs": _EMPTY_OBJECT,
    "vllm_xargs": _EMPTY_OBJECT,
}
NOT_OF_A_CHAT: _Neutral = {
    "echo": _FALSE,
    "best_of": ("1", lambda value: value == 1),
    "truncate_prompt_tokens": _LEFT_OUT,
    "add_special_tokens": _FALSE,
}


def refuse_unsupported(value: object, fields: _Neutral) -> None:
    """UnsupportedField at the first of these that asks for something."""
    if not isinstance(value, dict):
        return
    for param, (neutral, is_neutral) in fields.items():
        given = value.get(param)
        if given is not None and not is_neutral(given):
            rule = f"{param} is not supported here: it must be {neutral} or absent"
            raise UnsupportedField(param, f"{rule}, but got {shortened(given)}.")
