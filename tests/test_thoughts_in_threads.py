"""Soft thoughts are made in many threads of a service at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fitted import fitted_softcot

from adapters import softcot as softcot_module
from adapters.backbone import Backbone


def test_what_is_kept_for_prompts_that_come_again_is_bounded(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [backbone.chat_ids(f"Start with {number}.") for number in range(12)]
    softcot = fitted_softcot(backbone, 3)
    found = softcot.states(backbone, prompts[0])
    monkeypatch.setattr(softcot_module, "_CACHED_BYTES", 4 * (found.nbytes + 36 * len(prompts[0])))
    for ids in prompts:
        softcot.states(backbone, ids)
        assert ids in softcot._states and len(softcot._states) < 8


def test_threads_that_think_at_once_get_their_own_thoughts(backbone: Backbone) -> None:
    prompts = [backbone.chat_ids(f"Start with {number}. Add 5. {'What is the result? ' * (number % 3)}") for number in range(48)]

    softcot = fitted_softcot(backbone, 3)
    with torch.no_grad():
        alone = [softcot.thoughts(backbone, ids)[0] for ids in prompts]
    softcot._states.clear()
    with ThreadPoolExecutor(6) as pool, torch.no_grad():
        together = list(pool.map(lambda ids: softcot.thoughts(backbone, ids)[0].detach(), prompts))
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one.detach(), two)
