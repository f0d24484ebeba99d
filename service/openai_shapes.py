"""The OpenAI wire shapes: what a request may hold, what is refused by name, and what a reply looks like.

Fields that no one knows are accepted and ignored, as clients add some. Fields that OpenAI or vLLM define and that this
service does not honour are refused with a sentence, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from engine.decoding.branches import Branches
from engine.decoding.narrowing import Narrowing
from engine.engine import MAX_TOP_LOGPROBS
from engine.profile import DecodingPolicy
from service.chat_fields import ChatFields
from service.shortened import shortened
from service.token_fields import MAX_CHOICES, TokenFields
from service.unsupported import NEUTRAL, NOT_OF_A_CHAT, UnsupportedField, refuse_unsupported

MODEL_HEADER = "x-graftline-model"
MAX_STOPS = 4
MAX_REPLIES = 1024


class StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: with `include_usage`, every chunk says what was used so far."""


class Decoding(Narrowing):
    """This service's own field: less of the release's decoding policy, and branches for one reply. Unknown keys are refused.

    `branches`: left out, the release's; false or null, none.
    """

    branches: Branches | None = None

    @field_validator("branches", mode="before")
    @classmethod
    def _false_is_none(cls, value: object) -> object:
        return None if value is False else value

    def branches_of(self, policy: DecodingPolicy) -> Branches | None:
        """Of a reply under the release's policy; one that is traced has none."""
        asked = "branches" in self.model_fields_set or self.tracing is not None
        return self.branches if asked else policy.branches

    @model_validator(mode="after")
    def _one_way_of_answering(self) -> Decoding:
        if self.branches is not None and self.tracing is not None:
            raise ValueError("decoding.branches and decoding.tracing are two ways to one reply: give one of them")
        return self


class _Request(TokenFields):
    """What both kinds of request hold. `temperature` and `top_p` left out: as the release's decoding policy says."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    decoding: Decoding = Decoding()
    user: str | None = Field(default=None, max_length=512)  # whose requests one side of a canary answers
    cache_salt: str = Field(default="", max_length=256)
    """Requests of different salts share nothing of what is kept of their prompts."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # seconds from the request's arrival
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Of those that wait the smallest goes first. None: 0."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_honoured(cls, value: object) -> object:
        refuse_unsupported(value, NEUTRAL)
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _as_texts(cls, value: object) -> object:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _at_most_four(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_STOPS or "" in value:
            given = shortened(list(value))
            raise ValueError(f"stop is a text or a list of at most {MAX_STOPS} texts, none empty, but got {given}")
        return value

    @field_validator("decoding", mode="before")
    @classmethod
    def _null_asks_for_nothing(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("stream", mode="before")
    @classmethod
    def _null_is_false(cls, value: object) -> object:
        return False if value is None else value

    @model_validator(mode="after")
    def _usage_only_when_streamed(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise UnsupportedField("stream_options", "stream_options is only allowed when stream is true. Leave it out.")
        return self

    @model_validator(mode="after")
    def _branches_are_greedy(self) -> _Request:
        if self.decoding.branches is not None and (param := self.not_beside_branches) is not None:
            rule = f"{param} cannot be given together with decoding.branches: each branch is greedy after its first token"
            ways = "unless branches.temperature says otherwise, and ends with its answer line. Leave it out."
            raise UnsupportedField(param, f"{rule}, {ways}")
        return self

    @property
    def not_beside_branches(self) -> str | None:
        """The first field that asks for what branches do not give."""
        neutral = {"temperature": (None, 0), "top_p": (None, 1), "stop": ((),)}
        drawn = next((param for param, allowed in neutral.items() if getattr(self, param) not in allowed), None)
        return drawn or self.says_of_tokens or self.not_of_one_row

    @property
    def num_rows(self) -> int:
        """Replies written to each prompt."""
        return self.n

    @property
    def not_of_one_row(self) -> str | None:
        """The first field that only a reply which is one row of the engine can have."""
        return None if self.n == 1 else "n"

    @property
    def token_limit(self) -> int | None:
        """None: the request leaves it open."""
        return self.max_tokens


class ChatRequest(ChatFields, _Request):
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0

    @model_validator(mode="before")
    @classmethod
    def _as_a_chat(cls, value: object) -> object:
        refuse_unsupported(value, NOT_OF_A_CHAT)
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs are listed beside logprobs: set logprobs to true, or leave top_logprobs out")
        asked = (("tools", self.offers_tools), ("continue_final_message", self.continue_final_message))
        if self.decoding.tracing is not None and (param := next((name for name, is_on in asked if is_on), None)):
            rule = f"{param} cannot be given together with decoding.tracing, which asks questions of its own"
            raise UnsupportedField(param, f"{rule}. Leave one of them out.")
        if self.grammar is not None and self.offers_tools:
            raise ValueError("a call of a tool is nothing that the reply's grammar allows: leave out the tools, or the grammar")
        if self.called and self.ignore_eos:
            raise ValueError("ignore_eos goes on after the end of a call that tool_choice asks for: leave out one of the two")
        return self

    @property
    def says_of_tokens(self) -> str | None:
        return "tool_choice" if self.called else super().says_of_tokens

    @property
    def not_of_one_row(self) -> str | None:
        return "logprobs" if self.logprobs else super().not_of_one_row

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest stand beside each token; None: no log-probabilities are asked for."""
        return self.top_logprobs if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


TokenIds = Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class CompletionRequest(_Request):
    """`prompt` is a text, several texts, token ids, or several lists of token ids."""

    prompt: str | TokenIds | Texts | Annotated[tuple[TokenIds, ...], Field(min_length=1)]
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """None: as many as `n`."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """The last so many tokens of each prompt are read; -1: as many as the context holds."""
    add_special_tokens: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_a_completion(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("logprobs") is False:
            return {**value, "logprobs": None}
        return value

    @field_validator("echo", "add_special_tokens", mode="before")
    @classmethod
    def _null_asks_for_none(cls, value: object) -> object:
        return False if value is None else value

    @model_validator(mode="after")
    def _fit_together(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0 only where echo has the prompt read back: set echo to true, or ask for a token")
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens keeps at least one token of the prompt, but got 0")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of writes at least n replies, but got {self.best_of} and n is {self.n}")
        if len(self.prompts) * self.num_rows > MAX_REPLIES:
            asked = f"{len(self.prompts)} prompts with {self.num_rows} each"
            raise ValueError(f"a request has at most {MAX_REPLIES} replies, but got {asked}: send several requests")
        if self.stream and self.num_rows > self.n:
            raise ValueError("best_of chooses among whole replies, which a stream does not wait for: leave out one of the two")
        return self

    @property
    def num_rows(self) -> int:
        return self.best_of or self.n

    @property
    def not_of_one_row(self) -> str | None:
        asked = {"logprobs": self.logprobs is not None, "echo": self.echo, "best_of": self.num_rows > 1}
        return next((param for param, is_asked in asked.items() if is_asked), super().not_of_one_row)

    @property
    def num_top(self) -> int | None:
        """As of a chat."""
        return self.logprobs

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _say_all_forms(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            rule = "a prompt is a text, a list of texts, a list of token ids or a list of such lists, none empty"
            raise ValueError(f"{rule}, but got {shortened(value)}") from error

    @property
    def token_limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default for this endpoint

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """One entry a choice."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [tuple(part for part in self.prompt if isinstance(part, int))]
        return [part for part in self.prompt if not isinstance(part, int)]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int] | None = None  # None: nothing to tell

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
        """`cached_tokens` of the prompt had been read for another request."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details={"cached_tokens": cached_tokens},
        )


class Choice(BaseModel):
    """One answer, or one piece of it: `message` of a chat, `delta` of a streamed chat, `text` of a completion."""

    index: int
    message: dict[str, JsonValue] | None = None
    delta: dict[str, JsonValue] | None = None
    text: str | None = None
    logprobs: dict[str, JsonValue] | None = None
    finish_reason: str | None = None

    def wire(self) -> dict[str, JsonValue]:
        unused = {name for name in ("message", "delta", "text") if getattr(self, name) is None}
        return self.model_dump(exclude=unused)


def model_header(model: str) -> dict[str, str]:
    """What answered, in ASCII."""
    return {MODEL_HEADER: quote(model, safe="/@:")}


ObjectName = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class Reply(BaseModel):
    """A whole reply, or one chunk of a stream."""

    id: str
    object: ObjectName
    created: int
    model: str
    system_fingerprint: str

    @property
    def headers(self) -> dict[str, str]:
        """For whoever reads no body: the model, in ASCII."""
        return model_header(self.model)

    def wire(
        self,
        choices: Sequence[Choice],
        usage: Usage | None,
        *,
        with_usage: bool = True,
        told: Mapping[str, JsonValue] | None = None,
    ) -> dict[str, JsonValue]:
        """`told` stands as `graftline` beside the choices, where there is something to tell."""
        body: dict[str, JsonValue] = {**self.model_dump(), "choices": [choice.wire() for choice in choices]}
        if told:
            body["graftline"] = dict(told)
        if with_usage:
            body["usage"] = None if usage is None else usage.model_dump(exclude_none=True)
        return body
