"""How far adapters are from the backbone: KL(backbone || adapted), by one backbone, its adapters on and off.

It is summed over the vocabulary at every completion token, and so never below 0. Every method reads it alike while it fits,
whatever it is that it learns: over completion tokens of its batch, before the step's update, every EVERY steps. It is logged as
`forward_kl` and is no part of any loss. Of a batch as many rows are read as lie within MOST_TOKENS, so that the reading takes a
few percent of the fit. A fitted adapter is read on what the backbone itself writes: the predictor of forgetting of RL's Razor
(arXiv 2509.04259).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.lora import adapters_off
from engine.engine import Engine, GenerationRequest
from tuning.batches import Batch, Row, collate

# Legend: N label positions of a batch, V vocabulary

FORWARD_KL = "forward_kl"
EVERY, MOST_TOKENS = 5, 256


def forward_kl(backbone: Backbone, stack: Stack, rows: Sequence[Row], seed: str) -> float:
    """In nats per completion token, over rows that the seed draws. The stack is attached; nothing that is drawn later changes."""
    return _over(backbone, stack, drawn(rows, seed))


def written_by_backbone(engine: Engine, backbone: Backbone, prompts: Sequence[str], max_new_tokens: int = 32) -> list[Row]:
    """What it samples to each prompt at temperature 1, by the prompt's place as the seed."""
    asked = [backbone.chat_ids(prompt) for prompt in prompts]
    requests = [
        GenerationRequest(ids, None, max_new_tokens, temperature=1.0, top_p=1.0, seed=place) for place, ids in enumerate(asked)
    ]
    return [Row(ids, done.token_ids) for ids, done in zip(asked, engine.complete(requests), strict=True) if done.token_ids]


def distance(backbone: Backbone, adapters: Sequence[Adapter], rows: Sequence[Row]) -> float:
    """KL(backbone || adapted) of adapters that are not attached, in nats per completion token of the rows."""
    stack = Stack(adapters)
    with stack.attach(backbone):
        return _over(backbone, stack, rows)


def _over(backbone: Backbone, stack: Stack, rows: Sequence[Row]) -> float:
    with torch.no_grad(), _without_dropout(backbone.model), backbone.autocast():
        logits_NV, labels_N = label_logits(backbone, collate(backbone, stack, rows))
        return float(pull_to_base(backbone, logits_NV, rows)) / max(1, len(labels_N))


def drawn(rows: Sequence[Row], seed: str) -> list[Row]:
    """Rows of MOST_TOKENS in all, one at least, whatever order they come in."""
    found, num_tokens = list[Row](), 0
    in_order = sorted(rows, key=lambda row: (row.prompt_ids, row.completion_ids))
    for row in random.Random(f"distance/{seed}").sample(in_order, len(rows)):
        num_tokens += len(row)
        if found and num_tokens > MOST_TOKENS:
            break
        found.append(row)
    return found


def step_of(name: str, place: int) -> int:
    """The step (0, 1, ...) that the value at this place belongs to, among a fit's numbers of that name."""
    return place * EVERY if name == FORWARD_KL else place


def pull_to_base(backbone: Backbone, logits_NV: Tensor, rows: Sequence[Row]) -> Tensor:
    """KL(backbone || adapted) in nats, summed over the rows' label positions. The adapters are attached, and off for a moment."""
    with torch.no_grad(), adapters_off(backbone.model), backbone.autocast():
        base_NV, _ = label_logits(backbone, collate(backbone, Stack(()), rows))
    return kl_div(log_softmax(logits_NV.float(), -1), log_softmax(base_NV.float(), -1), log_target=True, reduction="sum")


def label_logits(backbone: Backbone, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N] at the label positions only: the full logits of a batch take gigabytes."""
    hidden_BTH = backbone.decoder(inputs_embeds=batch.embeds_BTH, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state
    kept_BT = batch.targets_BT != -100
    head = backbone.model.get_output_embeddings()
    logits_NV: Tensor = head(hidden_BTH[kept_BT])
    return logits_NV, batch.targets_BT[kept_BT]


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The adapter as it is served, without a draw from the fit's random numbers."""
    learning = [module for module in model.modules() if module.training]
    for module in learning:
        module.training = False
    try:
        yield
    finally:
        for module in learning:
            module.training = True
