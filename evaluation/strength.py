"""How strong a steering vector may be: the largest gamma whose measured KL to the backbone keeps a bound.

The KL is measured, not bounded: the closed form of activation-steered compression (arXiv 2507.04742, appendix A) bounds it over
the whole vocabulary, and comes out hundreds of times too careful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.steering import Steering
from engine.engine import Continuation
from evaluation.errors import DataError

# Legend: T tokens, V vocabulary, H hidden

MAX_TOKENS = 1024  # of the traces together: the backbone's distributions over them are held in memory
CLOSE = 0.9  # of the bound: what lies between this and the bound is not bisected further
_ROUNDS = 12


@dataclass(frozen=True)
class Strength:
    """`curve` has all that was measured, (gamma, nats per token), ascending from (0, 0). `kl <= eps` always holds."""

    gamma: float
    kl: float
    curve: tuple[tuple[float, float], ...]
    tokens: int
    hidden_norm_median: float


class Divergence:
    """The mean over tokens of KL(backbone || adapted) on given texts, whole distributions in nats."""

    def __init__(self, backbone: Backbone, traces: Sequence[Continuation]) -> None:
        """What comes after `scored_from` is read, the first MAX_TOKENS of all traces together."""
        self.backbone = backbone
        self._traces = _within(traces, MAX_TOKENS)
        if not self._traces:
            raise DataError("A KL is measured on one trace of a token or more, but got none. Give longer chains.")
        self.tokens = sum(len(trace.ids) - trace.scored_from for trace in self._traces)
        self._base = [self._logprobs(trace) for trace in self._traces]

    def of(self, *adapters: Adapter) -> float:
        return sum(self._summed(adapters)) / self.tokens

    def by_trace(self, *adapters: Adapter) -> list[float]:
        """Each trace's own mean over its tokens."""
        return [
            total / (len(trace.ids) - trace.scored_from)
            for total, trace in zip(self._summed(adapters), self._traces, strict=True)
        ]

    def _summed(self, adapters: Sequence[Adapter]) -> list[float]:
        with Stack(adapters).attach(self.backbone):
            return [
                float(kl_div(self._logprobs(trace), base_TV, log_target=True, reduction="sum"))
                for trace, base_TV in zip(self._traces, self._base, strict=True)
            ]

    def hidden_norms(self, layer: int) -> Tensor:
        """Of the backbone's states after that layer, one a token."""
        kept: list[Tensor] = []
        hook = self.backbone.layers[layer].register_forward_hook(
            lambda module, inputs, output: kept.append((output if isinstance(output, Tensor) else output[0])[0].float())
        )
        try:
            for trace in self._traces:
                self._logprobs(trace)
        finally:
            hook.remove()
        asked = zip(kept, self._traces, strict=True)
        return torch.cat([states_TH[len(trace.prompt_ids) + trace.scored_from :].norm(dim=-1) for states_TH, trace in asked])

    @torch.no_grad()
    def _logprobs(self, trace: Continuation) -> Tensor:
        """[T, V] in float32, at the places that the trace's tokens are read from."""
        ids = torch.tensor([[*trace.prompt_ids, *trace.ids]], device=self.backbone.device)
        first = len(trace.prompt_ids) + trace.scored_from - 1
        states_TH = self.backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, first:-1]
        logits_TV: Tensor = self.backbone.model.get_output_embeddings()(states_TH)
        return logits_TV.float().log_softmax(-1)


def check_bound(eps: float) -> None:
    """DataError for a bound of the KL that would bound nothing, or let nothing through."""
    if not 0 < eps < math.inf:
        raise DataError(f"A bound of the KL is a finite number of nats above 0, but got {eps:g}. 0.03 is a usual one.")


def calibrated(divergence: Divergence, steering: Steering, eps: float) -> Strength:
    """By bisection. No gamma makes what is added longer than the median state: there a text falls apart whatever the KL is."""
    check_bound(eps)
    steering = steering.at(1.0)
    assert steering.layer is not None
    length = float(steering.contribution().residual[steering.layer].norm())
    if not 0 < length < math.inf:
        raise DataError(
            f"A steering vector points somewhere, but this one is {length:g} long: all zeros where its long and short chains are "
            "the same, no number where a state overflows. Take other pairs, or another layer."
        )
    median = float(divergence.hidden_norms(steering.layer).median())
    highest = median / length
    curve = {0.0: 0.0}

    def measured(gamma: float) -> float:
        curve[gamma] = divergence.of(steering.at(gamma))
        return curve[gamma]

    low, high, gamma = 0.0, None, 0.1 * highest
    while high is None and low < highest:
        if measured(gamma) <= eps:
            low, gamma = gamma, min(2 * gamma, highest)
        else:
            high = gamma
    for _ in range(_ROUNDS if high is not None else 0):
        assert high is not None
        middle = (low + high) / 2
        if measured(middle) > eps:
            high = middle
        else:
            low = middle
            if curve[low] >= CLOSE * eps:
                break
    if not low:
        weakest = sorted(curve.items())[1][1]
        raise DataError(f"No strength of the vector keeps a KL of {eps:g} nats; the weakest has {weakest:g}. Raise eps.")
    return Strength(low, curve[low], tuple(sorted(curve.items())), divergence.tokens, median)


def _within(traces: Sequence[Continuation], max_tokens: int) -> list[Continuation]:
    kept: list[Continuation] = []
    for trace in traces:
        room = max_tokens - sum(len(one.ids) - one.scored_from for one in kept)
        cut = Continuation(trace.prompt_ids, trace.ids[: trace.scored_from + room], trace.scored_from)
        if len(cut.ids) > cut.scored_from:
            kept.append(cut)
    return kept
