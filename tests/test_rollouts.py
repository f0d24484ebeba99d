"""What a model writes for a fit: in order, seeded, and not written twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fitted import fitted_lora, fitted_softcot

from adapters.backbone import Backbone
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.decoding.budget import Budget
from engine.engine import GenerationRequest
from engine.profile import DecodingPolicy
from tuning.rollouts import has_begun, rollouts


def requests(backbone: Backbone, count: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(backbone.chat_ids(f"What comes after {n}?"), max_new_tokens=6, temperature=1.0, seed=n, top_logprobs=2)
        for n in range(count)
    ]


def test_what_was_kept_is_not_written_again(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.rollouts.CHUNK", 2)
    with rollouts(backbone, directory=tmp_path) as writer:
        some = writer.write(requests(backbone, 3))
    with rollouts(backbone, directory=tmp_path) as writer:
        whole = writer.write(requests(backbone, 5))
        assert writer.num_generated == sum(len(written.token_ids) for written in whole[3:])
    assert whole[:3] == some
    with rollouts(backbone) as writer:
        anew = writer.write(requests(backbone, 5))
    assert [written.token_ids for written in anew] == [written.token_ids for written in whole]


def test_what_was_kept_is_another_under_another_policy(backbone: Backbone, tmp_path: Path) -> None:
    (asked,) = requests(backbone, 1)
    cut = replace(asked, policy=DecodingPolicy(budget=Budget(max_trace_tokens=0, max_answer_tokens=2)))
    with rollouts(backbone, directory=tmp_path) as writer:
        plain, capped = writer.write([asked, cut])
        assert capped.text.startswith("Answer:") and capped.text != plain.text
        assert writer.write([cut, asked]) == [capped, plain]
        assert writer.num_generated == len(plain.token_ids) + len(capped.token_ids)


def test_when_a_request_runs_decides_nothing_of_what_is_kept(backbone: Backbone, tmp_path: Path) -> None:
    (asked,) = requests(backbone, 1)
    with rollouts(backbone, directory=tmp_path) as writer:
        (written,) = writer.write([asked])
        assert writer.write([replace(asked, priority=3, cache_salt="mine")]) == [written]
        assert writer.num_generated == len(written.token_ids) and written.journey is not None
        writer.write([replace(asked, max_new_tokens=5)])
        assert writer.num_generated > len(written.token_ids)
    assert "waited_s" not in (tmp_path / "rollouts.jsonl").read_text()


def test_a_kill_in_the_middle_of_a_line_costs_that_line_alone(backbone: Backbone, tmp_path: Path) -> None:
    with rollouts(backbone, directory=tmp_path) as writer:
        whole = writer.write(requests(backbone, 3))
    file = tmp_path / "rollouts.jsonl"
    file.write_text(file.read_text()[:-40])
    with rollouts(backbone, directory=tmp_path) as writer:
        assert [written.token_ids for written in writer.write(requests(backbone, 3))] == [one.token_ids for one in whole]
        assert writer.num_generated == len(whole[2].token_ids)


def test_a_rollout_that_samples_without_a_seed_is_refused(backbone: Backbone) -> None:
    with rollouts(backbone) as writer, pytest.raises(ValueError, match="has a seed, but 1 of 1 have none"):
        writer.write([GenerationRequest((1, 2), temperature=1.0)])


def test_completions_of_one_prompt_read_it_once_and_are_what_they_are_alone(backbone: Backbone) -> None:
    one, other = (backbone.chat_ids(f"What comes after {n}?") for n in (1, 22))
    asked = [GenerationRequest(ids, max_new_tokens=6, temperature=1.0, seed=seed) for ids in (one, other) for seed in range(4)]
    with rollouts(backbone) as writer:
        together = writer.write(asked)
        stats = writer.engine.stats()
    assert stats.prompt_tokens == len(one) + len(other)
    assert [written.prompt_tokens for written in together] == [len(one)] * 4 + [len(other)] * 4
    assert len({written.token_ids for written in together}) > 4
    with rollouts(backbone) as writer:
        assert [writer.write([request])[0].token_ids for request in asked] == [written.token_ids for written in together]


def test_an_adapter_that_was_fitted_before_has_begun_and_a_new_one_has_not(backbone: Backbone) -> None:
    assert not has_begun(backbone, [LoRA(LoRASpec(rank=4)), SoftCoT(SoftCoTSpec(num_thoughts=3, assistant_layers=1))])
    assert has_begun(backbone, [fitted_lora(backbone, 1)]) and has_begun(backbone, [fitted_softcot(backbone, 1)])
