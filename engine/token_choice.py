"""What a request itself says about its next token, on one row: biases, penalties, ends that come too early, a grammar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.constraint import Constraint
from engine.engine import GenerationRequest
from engine.errors import BadGrammar

# Legend: V vocabulary


class TokenChoice:
    """One row's. `biased` acts before the decoding policy and `allowed` after it; neither writes to the logits that it gets."""

    def __init__(self, request: GenerationRequest, ends: frozenset[int], constraint: Constraint | None) -> None:
        """`ends`: the tokens that end this row."""
        self._request = request
        self._ends = sorted(ends)
        self._constraint = constraint
        self._num_taken = 0
        self._counts_V: Tensor | None = None  # of the reply; made with the first logits, as is the next
        self._seen_V: Tensor | None = None  # in the prompt or the reply

    @classmethod
    def of(cls, request: GenerationRequest, ends: frozenset[int], constraint: Constraint | None) -> TokenChoice | None:
        """None where a request asks for nothing of this: such a row pays nothing."""
        asks = request.logit_bias or request.min_new_tokens or constraint is not None or _has_penalty(request)
        return cls(request, ends, constraint) if asks else None

    def biased(self, logits_V: Tensor) -> Tensor:
        if not self._request.logit_bias:
            return logits_V
        ids, values = zip(*self._request.logit_bias, strict=True)
        changed_V = logits_V.float().clone()
        changed_V[list(ids)] += torch.tensor(values, device=logits_V.device)
        return changed_V

    def allowed(self, logits_V: Tensor) -> Tensor:
        """After the penalties, minus infinity where a token may not come. BadGrammar where none may."""
        found_V = self._penalised(logits_V)
        held_V = self._without_ends(found_V)
        if self._constraint is None:
            return held_V
        allowed_V = self._constraint.allowed_V(len(found_V)).to(found_V.device)
        # The grammar may ask for an end where `min_new_tokens`, or a policy, would hold it back.
        for logits_V in (held_V, found_V, torch.zeros_like(found_V)):
            kept_V = logits_V.float().masked_fill(~allowed_V, -torch.inf)
            if kept_V.max() > -torch.inf:
                return kept_V
        raise BadGrammar("The reply cannot go on in its grammar: no token of this backbone fits. Simplify the grammar.")

    def take(self, token_id: int) -> None:
        """BadGrammar where the grammar does not allow the token."""
        self._num_taken += 1
        if self._constraint is not None:
            self._constraint.take(token_id)
        if self._counts_V is not None and self._seen_V is not None:
            self._counts_V[token_id] += 1
            self._seen_V[token_id] = True

    def _without_ends(self, logits_V: Tensor) -> Tensor:
        if self._num_taken >= self._request.min_new_tokens or not self._ends:
            return logits_V
        return logits_V.index_fill(0, torch.tensor(self._ends, device=logits_V.device), -torch.inf)

    def _penalised(self, logits_V: Tensor) -> Tensor:
        asked = self._request
        if not _has_penalty(asked):
            return logits_V
        if self._counts_V is None or self._seen_V is None:
            self._counts_V = torch.zeros(len(logits_V), device=logits_V.device)
            self._seen_V = _marked(len(logits_V), (*asked.prompt_ids, *asked.begun_ids), logits_V.device)
        found_V = logits_V.float()
        if asked.repetition_penalty != 1:
            scaled_V = torch.where(found_V > 0, found_V / asked.repetition_penalty, found_V * asked.repetition_penalty)
            found_V = torch.where(self._seen_V, scaled_V, found_V)
        found_V = found_V - asked.frequency_penalty * self._counts_V
        return found_V - asked.presence_penalty * (self._counts_V > 0)


def _has_penalty(request: GenerationRequest) -> bool:
    return bool(request.presence_penalty or request.frequency_penalty or request.repetition_penalty != 1)


def _marked(size: int, ids: Sequence[int], device: torch.device) -> Tensor:
    seen_V = torch.zeros(size, dtype=torch.bool, device=device)
    seen_V[list(ids)] = True
    return seen_V
