"""What the vLLM engine takes of a profile, and the files that it hands to vLLM. No vLLM is needed for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitted import fitted_lora, fitted_softcot, random_steering
from safetensors.torch import load_file

from adapters.adapter import Contribution, LowRank, Stack
from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter, RefusedAdapter
from adapters.lora import LoRA
from engine.profile import Profile
from engine.vllm.checkpoint import checkpoint_of
from engine.vllm.files import write_adapter, zero_update
from engine.vllm.gate import admitted
from engine.vllm.options import VLLMOptions


class Contributes:
    """An adapter of which only the contribution is asked."""

    def __init__(self, contribution: Contribution) -> None:
        self._contribution = contribution

    def contribution(self) -> Contribution:
        return self._contribution


def update_of(backbone: Backbone, path: str, **changes: torch.Tensor) -> Profile:
    update = fitted_lora(backbone, 1).contribution().low_rank[path]
    return Profile((Contributes(Contribution({path: replace(update, **changes)})),))  # type: ignore[arg-type]


Q = "model.layers.0.self_attn.q_proj"


def test_a_lora_of_attention_and_mlp_is_taken_whole(backbone: Backbone) -> None:
    taken = admitted("one", Profile((fitted_lora(backbone, 1),)), backbone, 64)
    assert taken.low_rank.keys() == fitted_lora(backbone, 1).contribution().low_rank.keys()


@pytest.mark.parametrize(
    ("part", "changes"),
    [("lora_bias", {"bias_O": torch.ones(32)}), ("rank", {"a_RI": torch.ones(65, 32), "b_OR": torch.ones(32, 65)})],
)
def test_what_vllm_does_not_run_is_refused_by_name(backbone: Backbone, part: str, changes: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RefusedAdapter, match=part):
        admitted("one", update_of(backbone, Q, **changes), backbone, 64)


def test_a_steering_vector_is_refused_by_name(backbone: Backbone) -> None:
    with pytest.raises(RefusedAdapter, match="steering"):
        admitted("one", Profile((random_steering(backbone),)), backbone, 64)


def test_a_head_or_an_embedding_is_refused_by_its_module(backbone: Backbone) -> None:
    update = LowRank(torch.ones(4, 32), torch.ones(len(backbone.tokenizer), 4))
    profile = Profile((Contributes(Contribution({"lm_head": update})),))  # type: ignore[arg-type]
    with pytest.raises(RefusedAdapter, match="target_modules.*lm_head"):
        admitted("one", profile, backbone, 64)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_is_more_than_a_lora_is_refused_by_its_setting(
    backbone: Backbone, tmp_path: Path, setting: dict[str, object]
) -> None:
    fitted_lora(backbone, 1).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(RefusedAdapter, match=next(iter(setting))):
        LoRA.load(tmp_path)


def test_another_backbones_shapes_are_refused(backbone: Backbone) -> None:
    with pytest.raises(RefusedAdapter, match="maps 32 to 32"):
        admitted("one", update_of(backbone, Q, b_OR=torch.ones(48, 4)), backbone, 64)


def test_weights_that_are_not_finite_never_reach_vllm(backbone: Backbone) -> None:
    with pytest.raises(DamagedAdapter, match="finite"):
        admitted("one", update_of(backbone, Q, b_OR=torch.full((32, 4), torch.nan)), backbone, 64)


def test_soft_thoughts_that_are_not_finite_never_reach_vllm(backbone: Backbone) -> None:
    softcot = fitted_softcot(backbone, 1)
    with softcot.attach(backbone), torch.no_grad():
        next(softcot.parameters()).fill_(torch.inf)
    with pytest.raises(DamagedAdapter, match="soft thoughts"):
        admitted("one", Profile((softcot,)), backbone, 64)


def test_a_rank_that_vllm_has_no_memory_for_is_no_option() -> None:
    with pytest.raises(ValueError, match="8, 16, 32"):
        VLLMOptions(max_lora_rank=24)


def test_peft_reads_what_is_written_as_the_same_update(backbone: Backbone, tmp_path: Path) -> None:
    lora = fitted_lora(backbone, 1).scaled(0.5)
    written = write_adapter(lora.contribution(), tmp_path)
    ids = torch.tensor([backbone.chat_ids("Start with 12. Add 5.")])
    with lora.attach(backbone):
        expected = backbone.model(ids).logits
    with LoRA.load(written.directory).attach(backbone):
        torch.testing.assert_close(backbone.model(ids).logits, expected)


def test_two_loras_of_different_ranks_are_written_as_their_sum(backbone: Backbone, tmp_path: Path) -> None:
    one, two = fitted_lora(backbone, 1, rank=4).contribution(), fitted_lora(backbone, 2, rank=2).contribution()
    both = Contribution({**one.low_rank, Q: Stack((Contributes(one), Contributes(two))).contribution().low_rank[Q]})  # type: ignore[arg-type]
    written = LoRA.load(write_adapter(both, tmp_path).directory).contribution().low_rank
    sums = {path: update.b_OR @ update.a_RI for path, update in one.low_rank.items()}
    sums[Q] = sums[Q] + two.low_rank[Q].b_OR @ two.low_rank[Q].a_RI
    assert {update.a_RI.shape[0] for update in written.values()} == {6}  # vLLM takes one rank, the largest
    for path, update in written.items():
        torch.testing.assert_close(update.b_OR @ update.a_RI, sums[path])


def test_a_directory_is_named_by_its_content_and_written_once(backbone: Backbone, tmp_path: Path) -> None:
    one, two = fitted_lora(backbone, 1).contribution(), fitted_lora(backbone, 2).contribution()
    written = write_adapter(one, tmp_path)
    before = (written.directory / "adapter_model.safetensors").stat().st_mtime_ns
    assert write_adapter(one, tmp_path) == written
    assert (written.directory / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert written.directory.name == written.digest
    assert write_adapter(two, tmp_path).directory != written.directory
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written stays


def test_the_zero_update_changes_nothing(backbone: Backbone, tmp_path: Path) -> None:
    written = write_adapter(zero_update(backbone), tmp_path)
    tensors = load_file(written.directory / "adapter_model.safetensors")
    assert len(tensors) == 2 and not any(tensor.any() for tensor in tensors.values())


def test_a_plain_directory_is_its_own_checkpoint(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    assert checkpoint_of(backbone, tmp_path) == backbone_directory
    assert not list(tmp_path.iterdir())


def test_weights_without_a_directory_are_written_once(backbone: Backbone, tmp_path: Path) -> None:
    unnamed = replace(backbone, name="frozen")
    directory = checkpoint_of(unnamed, tmp_path)
    assert checkpoint_of(unnamed, tmp_path) == directory
    assert Backbone.load(str(directory), device="cpu").weights_digest() == backbone.weights_digest()
