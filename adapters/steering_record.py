"""What is known of a compression vector: how it was made, how strong it is, which way it points, and what it does to refusals."""

from __future__ import annotations

from typing import Literal

from adapters.spec import Spec

# In nats a token: about one over a whole refusal. Every vector shifts the lean by something, and by less it tells nothing.
LEAN = 0.1


class Signs(Spec):
    """Mean tokens and accuracy of replies under minus gamma times the vector, without it, and under gamma times it.

    The changes are of the natural log of the tokens over the same `num_items` questions, with their 95 % intervals: from minus to
    plus, and from without to either. A direction shortens where it is shown to beside the other and beside neither.
    """

    tokens: tuple[float, float, float]
    accuracy: tuple[float, float, float]
    change: tuple[float, float, float]
    minus_change: tuple[float, float, float]
    plus_change: tuple[float, float, float]
    num_items: int

    @property
    def shortens(self) -> Literal["the vector", "its negative", "neither"]:
        _, low, high = self.change
        if high < 0 and self.plus_change[2] < 0:
            return "the vector"
        return "its negative" if low > 0 and self.minus_change[2] < 0 else "neither"


class LayerRow(Spec):
    """One layer of the sweep. The signs are of the vector as it was made, before any flip."""

    layer: int
    gamma: float
    kl: float  # nats per token at gamma
    norm: float  # of gamma times the vector
    signs: Signs


class Refusals(Spec):
    """Of the prompts that the backbone refuses, how many the steered one answers; and how both weigh a refusal.

    `margin_change` is the change of (log-probability of a refusal less that of a compliant beginning), in nats per token, with
    its 95 % interval over all prompts. It is known where the backbone refuses nothing, too.
    """

    num_prompts: int
    refused: int  # by the backbone
    answered: int  # of those, by the steered backbone
    margin_change: tuple[float, float, float]
    prompts_digest: str

    @property
    def raised(self) -> bool:
        """Whether it answers what the backbone refuses; where that refuses nothing, whether it clearly leans less to it."""
        return self.answered > 0 or (self.refused == 0 and self.margin_change[2] < -LEAN)


class SteeringRecord(Spec):
    """Beside the vector. `kl_curve` has all that was measured, as (gamma, nats per token), ascending."""

    eps: float
    gamma: float
    kl: float
    kl_curve: tuple[tuple[float, float], ...]
    kl_tokens: int  # of the calibration traces
    hidden_norm_median: float  # of the backbone's states after that layer, over the calibration traces
    signs: Signs
    flipped: bool  # the difference of means pointed the other way
    layers: tuple[LayerRow, ...]
    pairs: int
    pairs_digest: str  # SHA-256 over the pairs
    template_digest: str  # SHA-256 of the chat template
    positions: Literal["all"] = "all"  # the prompt's tokens too
    refusals: Refusals | None = None
