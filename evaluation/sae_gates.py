"""What a sparse autoencoder must show before its features are believed.

It explains the states (FVU), few of its features are dead, the backbone reads on through its reconstruction as through the states
(recovered loss), and another seed finds the features that ReasonScore puts on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapters.backbone import Backbone
from adapters.sae import SAE
from engine.engine import Continuation
from evaluation.errors import DataError
from evaluation.places import Places
from evaluation.reason_score import Groups, ReasonScore, WordsHardlyOccur, reason_score

# Legend: N places, T tokens, H hidden, V vocabulary, F features

MAX_FVU, MAX_DEAD, MIN_RECOVERED, MIN_STABLE = 0.3, 0.2, 0.9, 0.5
TOP = 10  # features by ReasonScore that the other seed must have
ALIKE = 0.7  # the cosine of two columns that are one feature
AMONG = 5  # times TOP: the other seed's features by its own ReasonScore, among which it must be

Change = Callable[[Tensor], Tensor]  # states to states, [N, H]


@dataclass(frozen=True)
class Recovered:
    """Mean negative log-probability of a chain's tokens, in nats, with the states at its places as they are, and replaced."""

    plain: float
    reconstructed: float
    mean: float  # by the mean state
    zero: float

    @property
    def share(self) -> float:
        """Of what the mean state loses, how much the reconstruction does not. Stricter than the like from zero."""
        return _recovered(self.plain, self.reconstructed, self.mean)

    @property
    def share_from_zero(self) -> float:
        return _recovered(self.plain, self.reconstructed, self.zero)


@dataclass(frozen=True)
class Stability:
    """Of the first seed's top features, the share that the second has among its own; `by_chance` of as many features at random,
    among all columns."""

    share: float
    cosines: tuple[float, ...]  # of each with its like
    by_chance: float  # mean largest cosine with the other's top features, of features drawn at random


@dataclass(frozen=True)
class SAEGates:
    """`stability` is None, with the reason, where the words that ReasonScore reads hardly occur."""

    fvu: float  # over held-out chains
    dead: float  # the share of features that are active at no harvested place
    recovered: Recovered
    stability: Stability | None
    not_measurable: str = ""

    @property
    def verdicts(self) -> Mapping[str, bool]:
        return {
            f"FVU {self.fvu:.3f}, at most {MAX_FVU:g}": self.fvu <= MAX_FVU,
            f"dead features {self.dead:.1%}, at most {MAX_DEAD:.0%}": self.dead <= MAX_DEAD,
            f"recovered loss {self.recovered.share:.3f}, at least {MIN_RECOVERED:g}": self.recovered.share >= MIN_RECOVERED,
            self._stable_told: self.stability is not None and self.stability.share >= MIN_STABLE,
        }

    @property
    def passed(self) -> bool:
        return all(self.verdicts.values())

    @property
    def _stable_told(self) -> str:
        if self.stability is None:
            return f"stability not measurable: {self.not_measurable}"
        return f"top {TOP} features that another seed has too {self.stability.share:.2f}, at least {MIN_STABLE:g}"

    def as_dict(self) -> dict[str, Any]:
        shares = {"share": self.recovered.share, "share_from_zero": self.recovered.share_from_zero}
        return {**asdict(self), "recovered": {**asdict(self.recovered), **shares}, "passed": self.passed}


def sae_gates(
    backbone: Backbone, saes: tuple[SAE, SAE], places: Places, traces: Sequence[Continuation], groups: Groups
) -> SAEGates:
    """Of the first; the second was fitted on the same places with another seed. `traces` are chains of no fit."""
    usual, (sae, _) = places.usual, saes
    chains = usual.held_out.chains
    if not len(chains) or not traces:
        raise DataError(
            f"Gates read held-out chains, but got {len(chains)} places of such and {len(traces)} traces. Harvest more."
        )
    stability, reason = None, ""
    try:
        scores = tuple(reason_score(backbone, one, usual, groups) for one in saes)
        stability = stable(saes, (scores[0], scores[1]))
    except WordsHardlyOccur as error:
        reason = str(error)
    dead = float((sae.frequency_F == 0).float().mean())
    return SAEGates(fvu(sae, chains), dead, recovered(backbone, sae, traces), stability, reason)


@torch.no_grad()
def fvu(sae: SAE, places: Places) -> float:
    """The share of the states' variance over these places that the reconstruction does not explain."""
    states_NH = places.states_NH.float()
    left = (states_NH - sae.reconstructed(states_NH)).pow(2).sum()
    return float(left / (states_NH - states_NH.mean(dim=0)).pow(2).sum().clamp(min=1e-12))


@torch.no_grad()
def recovered(backbone: Backbone, sae: SAE, traces: Sequence[Continuation]) -> Recovered:
    """States are replaced at every token of each chain; the mean is over all of these."""
    sae.check(backbone)
    kept = list[Tensor]()

    def keep(states_NH: Tensor) -> Tensor:
        kept.append(states_NH)
        return states_NH

    plain = _loss(backbone, sae.record.layer, traces, keep)
    mean_H = torch.cat(kept).mean(dim=0)
    changes: tuple[Change, ...] = (sae.reconstructed, lambda states_NH: mean_H.expand_as(states_NH), torch.zeros_like)
    return Recovered(plain, *(_loss(backbone, sae.record.layer, traces, change) for change in changes))


def stable(saes: tuple[SAE, SAE], scores: tuple[ReasonScore, ReasonScore]) -> Stability:
    """A feature of the first has its like in the second where the columns' cosine is ALIKE or more."""
    top, other = scores[0].top(TOP), scores[1].top(AMONG * TOP)
    if not top or not other:
        return Stability(0.0, (), 0.0)
    others_FH = saes[1].w_dec_FH[other]
    cosines_F = (saes[0].w_dec_FH[top] @ others_FH.T).amax(dim=1)
    alive = (saes[0].frequency_F > 0).nonzero()[:, 0]
    drawn = alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(0))[: AMONG * TOP]]
    by_chance = float((saes[0].w_dec_FH[drawn] @ others_FH.T).amax(dim=1).mean())
    return Stability(float((cosines_F >= ALIKE).float().mean()), tuple(map(float, cosines_F)), by_chance)


def _recovered(plain: float, reconstructed: float, ablated: float) -> float:
    return (ablated - reconstructed) / (ablated - plain) if ablated > plain else float("nan")


def _loss(backbone: Backbone, layer: int, traces: Sequence[Continuation], change: Change) -> float:
    """The mean over all tokens of the chains but each one's first, whose place is the prompt's."""
    total, count = 0.0, 0
    for trace in traces:
        begin, ids = len(trace.prompt_ids), torch.tensor([[*trace.prompt_ids, *trace.ids]], device=backbone.device)
        with _changed(backbone.layers[layer], begin, change):
            states_TH = backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, begin:-1]
        logits_TV: Tensor = backbone.model.get_output_embeddings()(states_TH)
        total += float(cross_entropy(logits_TV.float(), ids[0, begin + 1 :], reduction="sum"))
        count += len(trace.ids) - 1
    return total / count


@contextmanager
def _changed(layer: nn.Module, begin: int, change: Change) -> Iterator[None]:
    """Inside, what the layer puts out from place `begin` on is changed."""

    def replace(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        states_BTH = (output if isinstance(output, Tensor) else output[0]).clone()
        states_BTH[0, begin:] = change(states_BTH[0, begin:].float()).to(states_BTH)
        return states_BTH if isinstance(output, Tensor) else (states_BTH, *output[1:])

    hook = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
