"""A reply chosen from several branches: they run as rows of the engine's batch, and the winner is sent as one piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from adapters.backbone import Backbone
from engine.decoding.answer import said
from engine.decoding.branches import Branches
from engine.decoding.cot_decoding import CoTDecoding
from engine.engine import Delta, GenerationRequest
from engine.profile import DecodingPolicy
from service.writing import Generate, spent, together


@dataclass(frozen=True)
class Branching:
    """`generate` as an engine's, for requests whose reply is the winner of several branches.

    Every token that is paid for comes as a delta without text, and at the end the winner's text as one delta without a token.
    """

    rows: Generate
    backbone: Backbone
    branches: Branches
    decoding: CoTDecoding
    policy: DecodingPolicy

    @classmethod
    def of(cls, rows: Generate, backbone: Backbone, branches: Branches, policy: DecodingPolicy, max_tokens: int) -> Branching:
        """ValueError where the branches do not fit the policy, or `max_tokens`."""
        decoding = branches.within(backbone, policy, max_tokens)
        return cls(rows, backbone, branches, decoding, policy.model_copy(update={"budget": None}))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        rounds = self.decoding.rounds(self.backbone, [replace(request, policy=self.policy)])
        asked = next(rounds)
        while True:
            written = await together(self.rows, asked)
            for delta in spent(written):
                yield delta
            try:
                asked = rounds.send(written)
            except StopIteration as done:
                (decoded,) = done.value
                break
        winner = self.branches.winner(decoded, said)
        yield Delta(winner.text, None, None, "length" if winner.is_cut else "stop")
