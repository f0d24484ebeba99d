"""What a request says about its tokens: how they are drawn, what ends them, and how many replies there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from engine.engine import GenerationRequest
from engine.token_rules import BIAS, MAX_BIASED, MAX_STOP_IDS, PENALTY, REPETITION_PENALTY
from service.grammar_fields import GrammarFields
from service.shortened import shortened

MAX_CHOICES = 128  # OpenAI's
_SEEDS = 2**64
_TOKEN = re.compile(r"[0-9]{1,18}")

Penalty = Annotated[float, Field(ge=PENALTY[0], le=PENALTY[1], allow_inf_nan=False)]
Repetition = Annotated[float, Field(ge=REPETITION_PENALTY[0], le=REPETITION_PENALTY[1], allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=BIAS[0], le=BIAS[1], allow_inf_nan=False)]
TokenId = Annotated[int, Field(strict=True, ge=0)]


class TokenFields(GrammarFields):
    """Null is as good as left out."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition = 1.0
    logit_bias: Annotated[Mapping[int, Bias], Field(max_length=MAX_BIASED)] = {}
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    """0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=MAX_STOP_IDS)] = ()
    include_stop_str_in_output: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_neutral(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: given for key, given in value.items() if given is not None or key not in TokenFields.model_fields}

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_token(cls, value: object) -> object:
        """JSON has no keys but texts."""
        if (
            not isinstance(value, dict)
            or any(isinstance(one, bool) for one in value.values())
            or not all(_TOKEN.fullmatch(str(key)) for key in value)
        ):
            raise ValueError(f"logit_bias maps token ids to numbers from {BIAS[0]:g} to {BIAS[1]:g}, but got {shortened(value)}")
        if len({int(key) for key in value}) < len(value):
            raise ValueError("logit_bias names a token twice: once with zeros before its id")
        return value

    @model_validator(mode="after")
    def _ends_as_its_grammar(self) -> TokenFields:
        if self.ignore_eos and self.grammar is not None:
            raise ValueError("ignore_eos goes on after the end that a grammar asks for: leave out one of the two")
        return self

    @property
    def says_of_tokens(self) -> str | None:
        """The first of these fields that asks for something."""
        fields = TokenFields.model_fields
        asking = (name for name in fields if name != "response_format" and getattr(self, name) != fields[name].default)
        return "response_format" if self.response_format is not None and self.grammar is not None else next(asking, None)

    def of_choice(self, request: GenerationRequest, place: int) -> GenerationRequest:
        """The request of one of the replies to a prompt; each draws with a seed of its own. ValueError as the engine has it."""
        seed = None if request.seed is None else (request.seed + place + _SEEDS // 2) % _SEEDS - _SEEDS // 2
        return replace(
            request,
            seed=seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            # The context may have less room than was asked for.
            min_new_tokens=min(self.min_tokens, request.max_new_tokens),
            ignore_end=self.ignore_eos,
            stop_ids=self.stop_token_ids,
            includes_stop=self.include_stop_str_in_output,
            grammar=self.grammar or request.grammar,
        )
