"""Scoring a text under a routing: at each place what the routed row would draw from there, however it got there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adapters.adapter import Prompt
from engine.bank import BASE, AdapterBank
from engine.engine import Continuation
from engine.inspect import Inspected, kept_outputs
from engine.oracle import Router
from engine.peek import peek, read_text
from engine.twin import Twin

# Legend: P places, H hidden, V vocabulary


class RoutedScore(NamedTuple):
    logprobs: tuple[float, ...]
    num_tokens: int  # that went through a forward


def routed_score(
    asked: Continuation, adapted_prompt: Prompt, router: Router, name: str, twin: Twin, bank: AdapterBank
) -> RoutedScore:
    """`adapted_prompt`: the prompt as the profile's adapters read it; the backbone reads the continuation's own."""
    ids, first = (*asked.prompt_ids, *asked.ids[:-1]), len(asked.prompt_ids) - 1
    reply = asked.ids[:-1]
    with twin.running(), bank.rows([BASE]):
        states_TH, held = read_text(twin, ids)
        own_PV = twin.logits(states_TH[first:])
    adapted_PV, read_PH = _adapted(asked, adapted_prompt, router, name, twin, bank)
    means = router.means((None, *reply), read_PH)
    own, adapted = own_PV.argmax(dim=-1).tolist(), adapted_PV.argmax(dim=-1).tolist()
    shifts = {
        place: shift_H
        for place in range(asked.scored_from, len(asked.ids))
        if (shift_H := router.shift(means[place], own[place], adapted[place], ids[: first + 1 + place])) is not None
    }
    if shifts:
        shifts_PH = torch.stack(tuple(shifts.values())).to(twin.device)
        with twin.running(), bank.rows([BASE]):
            own_PV[list(shifts)] = peek(
                twin, ids, held, [first + place for place in shifts], router.routing.spec.layer, shifts_PH
            )
    told_PV = own_PV[asked.scored_from :].log_softmax(dim=-1)
    chosen = told_PV[torch.arange(len(told_PV)), torch.tensor(asked.ids[asked.scored_from :], device=told_PV.device)]
    return RoutedScore(tuple(chosen.tolist()), 2 * len(ids) + len(shifts))


def _adapted(
    asked: Continuation, prompt: Prompt, router: Router, name: str, twin: Twin, bank: AdapterBank
) -> tuple[Tensor, Tensor]:
    """The adapted model's logits at the reply's places, [P, V], and what the routing reads there, [P, H]."""
    row = Inspected(Continuation(asked.prompt_ids, asked.ids[:-1]), prompt, name)
    layer = router.read_layer
    with twin.running(), bank.rows([name]), kept_outputs(twin, [layer]) as kept:
        count = row.length
        causal_11TT = torch.ones(count, count, dtype=torch.bool, device=twin.device).tril()[None, None]
        positions_BT = torch.arange(count, device=twin.device)[None]
        states_TH = twin.states(row.embed(twin.embeddings)[None], positions_BT, causal_11TT)[0]
        return twin.logits(states_TH[row.first :]), kept[layer][0, row.first :].float()
