"""The fit of a routing: where the backbone would not write what the adapter wrote, one vector a category makes it likelier.

On greedy texts of the adapted model, each of their tokens is what the adapter would write there; the backbone reads along. At
the places where its own likeliest token is another, the sentence's category says which vector is added at one layer, and
directions and strengths descend the cross-entropy of the written token (Venhoff et al., arXiv 2510.07364; one strength a category
stands in the place of their network of the state, which at this size would be an adapter itself). No weight of a model changes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapters.backbone import Backbone
from adapters.routing import MAX_CATEGORIES, Routing, RoutingSpec
from adapters.sentences import SentenceMean
from adapters.spec import Range, Spec
from adapters.steering import SteeringSpec
from engine.engine import Continuation
from engine.inspect import Inspector
from engine.peek import CleanKeys, peek, read_text
from engine.twin import Twin
from evaluation.errors import DataError
from tuning.categories import Encoder, fit_categories

# Legend: P places, H hidden, K categories, S sentences

_HOLD_OUT = 5  # every fifth text chooses the epoch and teaches nothing


class RoutingFitSpec(Spec):
    """Layers are shares of the depth, or indices from 0. `max_places` of a text are learnt from in an epoch."""

    num_categories: Annotated[int, Field(ge=1, le=MAX_CATEGORIES), Range(3, 15)] = 5
    layer: Annotated[float | int, Range(0.25, 0.6)] = 0.37
    read_layer: Annotated[float | int, Range(0.4, 0.8)] = 0.6
    epochs: Annotated[int, Field(ge=1)] = 10
    patience: Annotated[int, Field(ge=1)] = 3
    rate: Annotated[float, Field(gt=0), Range(1e-3, 1e-1, log=True)] = 3e-2
    max_places: Annotated[int, Field(ge=1)] = 64
    seed: int = 0


class Likeness(NamedTuple):
    """At places of texts that taught nothing: nats of the adapter's token, and how often it is the likeliest."""

    nats: float
    agreement: float


@dataclass(frozen=True)
class FittedRouting:
    """`alone` and `steered` are of the held-out texts' differing places, `num_tokens` of all texts."""

    routing: Routing
    num_places: int
    num_tokens: int
    by_category: tuple[int, ...]  # places
    explained: float  # of the sentences' variance, by the categories' autoencoder
    alone: Likeness
    steered: Likeness


@dataclass(frozen=True)
class _Text:
    """One text with the places where the models differ."""

    ids: tuple[int, ...]
    first: int  # the place that the reply's first token is written from
    places: tuple[int, ...]  # counted from `first`
    targets: tuple[int, ...]
    means_PH: Tensor  # of the open sentence, at those places
    lean_PH: Tensor  # adapted less backbone, behind the steered layer
    held: CleanKeys
    sentences_SH: Tensor

    def some(self, count: int, seed: str) -> list[int]:
        return sorted(random.Random(seed).sample(range(len(self.places)), min(count, len(self.places))))


def fit_routing(
    engine: Inspector, backbone: Backbone, profile: str, texts: Sequence[Continuation], spec: RoutingFitSpec
) -> FittedRouting:
    """`texts` are greedy replies of the profile. DataError where the two models differ nowhere on them."""
    num_layers = len(backbone.layers)
    layer, read_layer = (SteeringSpec(layer=one).index(num_layers) for one in (spec.layer, spec.read_layer))
    twin = Twin(backbone)
    states = engine.hidden_states(
        [text for text in texts for _ in range(2)], [name for _ in texts for name in (profile, None)], [read_layer, layer]
    )
    found = [_read(twin, backbone, *each) for each in zip(texts, states[::2], states[1::2], strict=True)]
    taught, told = _parted(found)
    encoder = fit_categories(torch.cat([text.sentences_SH for text in found]), spec.num_categories, spec.seed)
    at = RoutingSpec(layer=layer, read_layer=read_layer)
    routing, alone, steered = _descended(twin, backbone, at, taught, told, encoder, spec)
    counts = torch.bincount(torch.cat([_categories(encoder, text) for text in found]), minlength=spec.num_categories)
    num_tokens = sum(len(text.ids) for text in texts)
    return FittedRouting(routing, int(counts.sum()), num_tokens, tuple(counts.tolist()), encoder.explained, alone, steered)


def _read(twin: Twin, backbone: Backbone, text: Continuation, adapted_LPH: Tensor, own_LPH: Tensor) -> _Text:
    ids, first = (*text.prompt_ids, *text.ids[:-1]), len(text.prompt_ids) - 1
    with torch.no_grad():
        states_TH, held = read_text(twin, ids)
        own = twin.logits(states_TH[first:]).argmax(dim=-1).tolist()
    sentence, means, ended = SentenceMean(backbone.decode), list[Tensor](), list[Tensor]()
    for token, state_H in zip((None, *text.ids[:-1]), adapted_LPH[0], strict=False):
        mean_H = sentence.take(token, state_H)
        if sentence.has_begun:
            ended.extend(means[-1:])
        means.append(mean_H)
    places = tuple(place for place, token in enumerate(text.ids) if own[place] != token)
    chosen = list(places)
    return _Text(
        ids,
        first,
        places,
        tuple(text.ids[place] for place in places),
        torch.stack(means)[chosen],
        (adapted_LPH[1] - own_LPH[1])[chosen],
        held,
        torch.stack([*ended, means[-1]]),
    )


def _parted(texts: Sequence[_Text]) -> tuple[list[_Text], list[_Text]]:
    """Those that teach, and those that choose the epoch; both differ somewhere."""
    differing = [text for text in texts if text.places]
    taught = [text for index, text in enumerate(differing) if index % _HOLD_OUT]
    told = differing[::_HOLD_OUT]
    if not taught:
        raise DataError(
            f"A routing is fitted where the adapter writes another token than the backbone would, but {len(differing)} of "
            f"{len(texts)} texts have such a place and two are needed. Take more items, or an adapter that "
            "changes what is written."
        )
    return taught, told


def _categories(encoder: Encoder, text: _Text) -> Tensor:
    found: Tensor = (text.means_PH @ encoder.weight_KH.T + encoder.bias_K).argmax(dim=1)
    return found


def _descended(
    twin: Twin,
    backbone: Backbone,
    at: RoutingSpec,
    taught: Sequence[_Text],
    told: Sequence[_Text],
    encoder: Encoder,
    spec: RoutingFitSpec,
) -> tuple[Routing, Likeness, Likeness]:
    """The routing of the best epoch, and what held-out texts say without it and with it; of no strength where none was better."""
    count, device = spec.num_categories, twin.device
    seen_P = torch.cat([_categories(encoder, text) for text in taught])
    lean_PH = torch.cat([text.lean_PH for text in taught])
    begin_KH = torch.randn(count, backbone.hidden_size, generator=torch.Generator().manual_seed(spec.seed))
    begin_KH = begin_KH / begin_KH.norm(dim=1, keepdim=True)
    for category in seen_P.unique().tolist():
        mean_H = lean_PH[seen_P == category].mean(dim=0)
        if mean_H.norm() > 0:  # an adapter that acts above the layer alone leans nowhere there
            begin_KH[category] = mean_H / mean_H.norm()
    is_used_K = torch.bincount(seen_P, minlength=count) > 0
    typical = torch.cat([text.means_PH for text in taught]).norm(dim=1).median()
    # Coordinates about 1 large, so that Adam's rate is the relative step.
    direction_KH = nn.Parameter((begin_KH * backbone.hidden_size**0.5).to(device))
    log_strength_K = nn.Parameter(torch.full((count,), float((0.2 * typical).log()), device=device))
    adam = torch.optim.Adam((direction_KH, log_strength_K), lr=spec.rate)

    def shifts(text: _Text, chosen: Sequence[int]) -> Tensor:
        category_P = _categories(encoder, text)[list(chosen)].to(device)
        unit_KH = direction_KH / direction_KH.norm(dim=1, keepdim=True)
        return torch.mul(log_strength_K.exp()[category_P, None], unit_KH[category_P])

    best, alone = None, _likeness(twin, told, at.layer, None)
    least, since = alone.nats, 0
    for epoch in range(spec.epochs):
        for index in random.Random(f"{spec.seed}/{epoch}").sample(range(len(taught)), len(taught)):
            text = taught[index]
            chosen = text.some(spec.max_places, f"{spec.seed}/{epoch}/{index}")
            logits_PV = _peeked(twin, text, chosen, at.layer, shifts(text, chosen))
            loss = cross_entropy(logits_PV, torch.tensor([text.targets[one] for one in chosen], device=device))
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            now = _likeness(twin, told, at.layer, [shifts(text, range(len(text.places))) for text in told])
        since = 0 if now.nats < least else since + 1
        if now.nats < least:
            least, best = now.nats, (direction_KH.detach().cpu().clone(), log_strength_K.detach().cpu().exp(), now)
        if since == spec.patience:
            break
    direction, strength_K, steered = best or (begin_KH, torch.zeros(count), alone)
    routing = Routing(
        at,
        backbone.fingerprint,
        encoder.weight_KH,
        encoder.bias_K,
        direction / direction.norm(dim=1, keepdim=True),
        strength_K * is_used_K,
    )
    return routing, alone, steered


def _peeked(twin: Twin, text: _Text, chosen: Sequence[int], layer: int, shifts_PH: Tensor) -> Tensor:
    places = [text.first + text.places[one] for one in chosen]
    return peek(twin, text.ids, text.held, places, layer, shifts_PH)


def _likeness(twin: Twin, texts: Sequence[_Text], layer: int, shifts: Sequence[Tensor] | None) -> Likeness:
    """None: without a shift."""
    nats, hits = list[float](), list[float]()
    with torch.no_grad():
        for index, text in enumerate(texts):
            count, width = len(text.places), text.means_PH.shape[1]
            shifts_PH = torch.zeros(count, width, device=twin.device) if shifts is None else shifts[index]
            logits_PV = _peeked(twin, text, range(count), layer, shifts_PH)
            targets_P = torch.tensor(text.targets, device=twin.device)
            nats.extend(cross_entropy(logits_PV, targets_P, reduction="none").tolist())
            hits.extend((logits_PV.argmax(dim=-1) == targets_P).float().tolist())
    return Likeness(sum(nats) / len(nats), sum(hits) / len(hits))
