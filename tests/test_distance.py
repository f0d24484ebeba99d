"""The distance to the backbone while a fit goes on: one number for all methods, and no trace of its reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fitted import fitted_lora

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from engine.engine import Continuation
from engine.profile import Profile
from engine.torch_engine import TorchEngine
from evaluation.task import Example
from tuning.batches import Row, collate
from tuning.distance import (
    EVERY,
    FORWARD_KL,
    MOST_TOKENS,
    distance,
    drawn,
    forward_kl,
    label_logits,
    pull_to_base,
    step_of,
    written_by_backbone,
)
from tuning.methods.dpo import DPOSpec, Pair, run_dpo
from tuning.methods.method import Given
from tuning.methods.sft import SFT, SFTSpec

EXAMPLES = [Example(id=str(n), question=f"What comes after {n}?", answer=str(n + 1), group=str(n)) for n in range(6)]


def sft(backbone: Backbone, **values: Any) -> tuple[dict[str, Sequence[float]], LoRA]:
    lora = LoRA(LoRASpec(rank=4, dropout=0.1))
    spec = SFTSpec(**{"steps": EVERY + 1, "batch_size": 6, "learning_rate": 1e-2} | values)
    return dict(SFT(spec).fit(backbone, [lora], EXAMPLES).numbers), lora


def test_a_new_lora_is_at_no_distance_and_a_fitted_one_is(backbone: Backbone) -> None:
    numbers, _ = sft(backbone)
    first, later = numbers[FORWARD_KL]
    assert first == 0.0 < later and [step_of(FORWARD_KL, place) for place in (0, 1)] == [0, EVERY]
    assert step_of("loss", 3) == 3


def test_it_is_the_pull_that_a_method_computes_on_the_same_rows(backbone: Backbone) -> None:
    lora, method = fitted_lora(backbone, 1), SFT(SFTSpec(steps=1, batch_size=2, kl_weight=1e-9))
    rows = list(method.prepare(Given(backbone, [lora], EXAMPLES[:2])).rows)
    assert drawn(rows, "") in (rows, rows[::-1])
    with lora.attach(backbone):
        read = forward_kl(backbone, Stack([lora]), rows, "")
    pulled = method.fit(backbone, [lora], EXAMPLES[:2]).kl[0]
    assert read == pytest.approx(pulled, rel=0.05) and read > 0


def test_it_is_weighed_by_what_the_backbone_would_say_and_not_by_what_the_adapter_would(backbone: Backbone) -> None:
    rows = [Row(backbone.chat_ids("What comes after 3?"), tuple(backbone.encode("It is 4.")))]
    with torch.no_grad():
        base_NV, _ = label_logits(backbone, collate(backbone, Stack(()), rows))
    base, sharper = base_NV.log_softmax(-1), (20 * base_NV).log_softmax(-1)
    forward, backward = (float((one.exp() * (one - other)).sum()) for one, other in ((base, sharper), (sharper, base)))
    assert float(pull_to_base(backbone, 20 * base_NV, rows)) == pytest.approx(forward, rel=0.05)
    assert backward != pytest.approx(forward, rel=0.2)


def test_reading_it_changes_nothing_of_the_fit(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lora = sft(backbone)  # drops out at random
    monkeypatch.setattr("tuning.loop.forward_kl", lambda *_: 0.0)
    _, unread = sft(backbone)
    assert all(torch.equal(tensor, unread.tensors()[key]) for key, tensor in lora.tensors().items())


def test_few_rows_are_read_in_whatever_order_they_come() -> None:
    rows = [Row((n,) * 30, (n,) * 30) for n in range(12)]
    found = drawn(rows, "0/5")
    assert len(found) == MOST_TOKENS // 60 and found == drawn(rows[::-1], "0/5") != drawn(rows, "0/10")
    assert len(drawn([Row((1,) * 900, (2,))], "")) == 1


def test_a_trainer_of_trl_reads_the_same_number(backbone: Backbone) -> None:
    pytest.importorskip("trl")
    pairs = [Pair(tuple(backbone.chat_ids(f"Say {n}")), (5, 6, 7), (8, 9)) for n in range(8)]
    done = run_dpo(backbone, LoRA(LoRASpec(rank=4)), DPOSpec(name="rlsf", steps=6, batch_size=4, learning_rate=1e-2), pairs)
    first, later = done.numbers[FORWARD_KL]
    assert first == 0.0 < later and len(done.numbers["loss"]) == 6


def test_on_the_backbones_own_words_zeros_are_at_no_distance_and_a_stronger_adapter_is_further(backbone: Backbone) -> None:
    lora, engine = fitted_lora(backbone, 1), TorchEngine(backbone)
    rows = written_by_backbone(engine, backbone, ["What comes after 3?", "What comes after 7?"], max_new_tokens=12)
    assert [len(row.completion_ids) for row in rows] == [12, 12]
    assert rows == written_by_backbone(engine, backbone, ["What comes after 3?", "What comes after 7?"], max_new_tokens=12)
    scales = [distance(backbone, [lora.scaled(scale)], rows) for scale in (0.0, 0.5, 1.0)]
    assert scales[0] == 0.0 < scales[1] < scales[2]


def test_it_is_what_sampled_tokens_show_on_average(backbone: Backbone) -> None:
    lora, engine = fitted_lora(backbone, 1), TorchEngine(backbone, max_rows=64)
    rows = written_by_backbone(engine, backbone, ["What comes after 3?"] * 64, max_new_tokens=16)
    engine.load("fitted", Profile((lora,)))
    words = [Continuation(row.prompt_ids, row.completion_ids) for row in rows]
    pairs = zip(engine.score(words), engine.score(words, "fitted"), strict=True)
    ratios = torch.tensor([b - a for base, adapted in pairs for b, a in zip(base, adapted, strict=True)])
    stderr = float(ratios.std()) / len(ratios) ** 0.5
    assert distance(backbone, [lora], rows) == pytest.approx(float(ratios.mean()), abs=4 * stderr)
