"""Replay: general prompts with the backbone's own greedy replies, learnt or held to beside the rows of a domain.

The prompts are of two kinds. The backbone writes its own: left at the place of the user's turn, a model that was taught to follow
instructions writes one (Magpie, Xu et al. 2024, arXiv 2406.08464). Or they are problems of the generated families, drawn from
what may be trained on. A reply is the backbone's own, right or wrong: it says what the backbone does, not what is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Literal

from adapters.backbone import Backbone
from engine.engine import GenerationRequest
from evaluation.errors import DataError
from evaluation.task import comparable, reasoning_prompt
from evaluation.tasks import FAMILIES
from tuning.batches import Row
from tuning.rollouts import Rollouts

Source = Literal["backbone", "families"]
PROMPT_TOKENS, REPLY_TOKENS = 48, 96
MAX_ROUNDS = 4  # of writing as many prompts as are wanted, before a backbone that repeats itself is given up


@dataclass(frozen=True)
class Replay:
    """Which prompts, and how many. The same value gives the same rows on the same backbone."""

    source: Source
    count: int
    seed: int
    without: str = ""  # a family that is itself the domain

    def rows(self, backbone: Backbone, writer: Rollouts) -> list[Row]:
        """One a prompt. A reply that was cut at REPLY_TOKENS has no end token: the row does not teach to stop there."""
        prompts = self.prompts(backbone, writer)
        asked = [GenerationRequest(backbone.chat_ids(prompt), None, REPLY_TOKENS, temperature=0.0) for prompt in prompts]
        return [Row(one.prompt_ids, reply.token_ids) for one, reply in zip(asked, writer.write(asked), strict=True)]

    def prompts(self, backbone: Backbone, writer: Rollouts) -> list[str]:
        if self.source == "backbone":
            return _own_prompts(backbone, writer, self.count, self.seed)
        drawn = [
            [reasoning_prompt(example) for example in family.examples("train", self.count, self.seed)]
            for family in FAMILIES.values()
            if family.name != self.without
        ]
        in_turns = chain.from_iterable(zip_longest(*drawn))
        return list(islice((prompt for prompt in in_turns if prompt is not None), self.count))


def _own_prompts(backbone: Backbone, writer: Rollouts, count: int, seed: int) -> list[str]:
    """Sampled at temperature 1 after what the chat template says before a user's text; each is kept once."""
    opening = backbone.user_header or (int(backbone.tokenizer.eos_token_id),)
    found: dict[str, str] = {}
    for attempt in range(MAX_ROUNDS):
        seeds = range(seed * 1_000_003 + attempt * count, seed * 1_000_003 + (attempt + 1) * count)
        asked = [GenerationRequest(opening, None, PROMPT_TOKENS, temperature=1.0, seed=own) for own in seeds]
        for written in writer.write(asked):
            if said := comparable(written.text):
                found.setdefault(said, written.text.strip())
        if len(found) >= count:
            return list(found.values())[:count]
    raise DataError(
        f"Replay takes {count} different prompts that the backbone writes itself, but {backbone.name!r} wrote {len(found)} in "
        f"{MAX_ROUNDS * count} tries. Lower method.num_replay, or draw them from the generated families "
        '(method.replay_from = "families").'
    )
