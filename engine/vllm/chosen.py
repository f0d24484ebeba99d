"""Rows whose tokens are chosen by us inside vLLM: under a decoding policy's interventions, or given ones that are scored.

A row's policy draws, forces and takes here as in the PyTorch engine, and vLLM is left one token to take. What it takes is read
from what stands written at the next step: a step may be computed twice, or its token thrown away.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from adapters.spec import Spec
from engine.decoding.row_policy import CompiledPolicy, RowPolicy
from engine.decoding.vocabulary import Vocabulary
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from engine.sampling import Sampler
from engine.token_choice import TokenChoice

# Legend: V vocabulary

FIELD = "graftline"  # in vLLM's extra_args
MAX_ROWS = 4096  # that are remembered; vLLM does not say which rows it will take up again


class Asked(Spec):
    """What travels with a request into vLLM's process. `forced_ids` stand one after another, whatever the model says."""

    key: str  # of the request, used once
    policy: DecodingPolicy = DecodingPolicy()
    prompt_ids: tuple[int, ...] = ()  # as they were asked, without what the profile adds; their end alone where that is enough
    begun_ids: tuple[int, ...] = ()
    max_new_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    forced_ids: tuple[int, ...] = ()

    @property
    def penalised(self) -> GenerationRequest:
        """Of the request, what is subtracted from tokens that stand already. vLLM would subtract it from the one token left."""
        return GenerationRequest(
            self.prompt_ids,
            begun_ids=self.begun_ids,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
        )

    @classmethod
    def of(cls, extra: Mapping[str, object] | None) -> Asked | None:
        """None where the request leaves its tokens to vLLM; ValueError where what it says cannot be read."""
        told = (extra or {}).get(FIELD)
        if told is None:
            return None
        try:
            return cls.model_validate_json(str(told))
        except ValidationError as error:
            raise ValueError(f"{FIELD!r} in extra_args is written by the engine itself, but got {told!r}: {error}") from error


class ChosenRow:
    def __init__(self, asked: Asked, policy: RowPolicy | None) -> None:
        self._asked = asked
        self._policy = policy
        self._sampler = Sampler.seeded(asked.temperature, asked.top_p, asked.seed, asked.top_k, asked.min_p)
        self._penalties = TokenChoice.of(asked.penalised, frozenset(), None)
        self._num_taken = 0
        self._drawn: tuple[int, RowPolicy] | None = None  # how much was written, and the policy after it drew there
        self._draws: Tensor | None = None  # the generator before that

    def leave_one(self, written: Sequence[int], logits_V: Tensor) -> Tensor:
        """What vLLM may draw from: the chosen token alone."""
        left_V = torch.full_like(logits_V, -torch.inf)
        left_V[self.choose(written, logits_V)] = 0.0
        return left_V

    def choose(self, written: Sequence[int], logits_V: Tensor) -> int:
        """`written`: all tokens of the reply so far."""
        if self._asked.forced_ids:
            return self._asked.forced_ids[min(len(written), len(self._asked.forced_ids) - 1)]
        assert self._policy is not None, "a row is chosen here for its policy, or forced"
        self._catch_up(self._policy, written)
        drawing = replace(self._policy, parts=tuple(map(copy.copy, self._policy.parts)))
        self._draws, self._drawn = self._sampler.generator.get_state(), (len(written), drawing)
        adjusted_V = drawing.adjust(logits_V)
        if self._penalties is not None:
            adjusted_V = self._penalties.allowed(adjusted_V)
        return drawing.force(self._sampler.choose(adjusted_V))

    def _catch_up(self, policy: RowPolicy, written: Sequence[int]) -> None:
        if self._drawn is not None and self._draws is not None:
            place, drawn = self._drawn
            if len(written) > place:
                policy = self._policy = drawn
            else:  # computed again: as if it had never been drawn
                self._sampler.generator.set_state(self._draws)
        for token_id in written[self._num_taken :]:
            policy.take(token_id)
            if self._penalties is not None:
                self._penalties.take(token_id)
        self._num_taken = len(written)


class ChosenRows:
    """By the requests' keys, so that a row which vLLM puts aside goes on where it was."""

    def __init__(self, words: Vocabulary) -> None:
        self._words = words
        self._rows: OrderedDict[str, ChosenRow] = OrderedDict()

    def of(self, extra: Mapping[str, object] | None) -> ChosenRow | None:
        """None where vLLM chooses."""
        asked = Asked.of(extra)
        if asked is None:
            return None
        if asked.key not in self._rows:
            compiled = CompiledPolicy.of(asked.policy, self._words)
            self._rows[asked.key] = ChosenRow(asked, compiled.for_row(asked.begun_ids, asked.max_new_tokens, asked.prompt_ids))
            if len(self._rows) > MAX_ROWS:
                self._rows.popitem(last=False)
        self._rows.move_to_end(asked.key)
        return self._rows[asked.key]
