"""The backbone: frozen, from any source, and known by the files it came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.backbone import REASONER_UPDATE, Backbone, merge_update
from adapters.errors import UnknownBackbone
from adapters.lora import LoRA, LoRASpec


def test_nothing_takes_a_gradient(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_the_fingerprint_is_of_the_files_not_of_the_tensors(backbone_directory: Path) -> None:
    low = Backbone.load(str(backbone_directory), dtype=torch.bfloat16)
    high = Backbone.load(str(backbone_directory), dtype=torch.float32)
    assert low.fingerprint == high.fingerprint
    assert low.weights_digest() != high.weights_digest()


def test_another_chat_template_is_another_backbone(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(backbone_directory, tmp_path / "copy"))
    assert Backbone.load(str(copy)).fingerprint == backbone.fingerprint
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert Backbone.load(str(copy)).fingerprint != backbone.fingerprint


def test_rotary_frequencies_keep_their_precision_in_bfloat16(backbone_directory: Path) -> None:
    low = Backbone.load(str(backbone_directory), dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    assert {buffer.dtype for name, buffer in low.model.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_a_merged_update_computes_what_the_adapter_did(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    lora = LoRA(LoRASpec(rank=4))
    ids = torch.tensor([backbone.chat_ids("What is 2 + 2?")])
    with lora.attach(backbone), torch.no_grad():
        for parameter in lora.parameters():
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
        adapted = backbone.model(ids).logits
    copy = Path(shutil.copytree(backbone_directory, tmp_path / "copy"))
    (copy / "update").mkdir()
    lora.save(copy / "update")
    merged = Backbone.load(str(copy))
    with torch.no_grad():
        assert torch.allclose(merged.model(ids).logits, adapted, atol=1e-4)
    assert merged.fingerprint != backbone.fingerprint


def test_the_reasoners_update_is_small_and_whole() -> None:
    from adapters.weights import read_tensors

    file = REASONER_UPDATE / "adapter_model.safetensors"
    assert file.stat().st_size <= 20_000_000
    assert {tensor.dtype for tensor in read_tensors(file).values()} == {torch.bfloat16}


def test_merging_leaves_other_weights_alone(backbone_directory: Path, tmp_path: Path) -> None:
    fresh = Backbone.load(str(backbone_directory))
    lora = LoRA(LoRASpec(rank=2, target_modules="mlp"))
    with lora.attach(fresh):
        for parameter in lora.parameters():
            torch.nn.init.ones_(parameter)
    lora.save(tmp_path)
    before = {key: tensor.clone() for key, tensor in fresh.model.state_dict().items()}
    merge_update(fresh.model, tmp_path)
    changed = {key for key, tensor in fresh.model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and all(".mlp." in key for key in changed)


@pytest.mark.parametrize("name", ["smollm3", "./nowhere", "/nowhere/model.gguf"])
def test_an_unknown_backbone_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UnknownBackbone, match="smollm2-135m-reasoner.*" + name.replace(".", r"\.")):
        Backbone.load(name)


def test_weights_that_no_fingerprint_is_of_are_refused_with_the_way_out(backbone_directory: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(backbone_directory, tmp_path / "other"))
    torch.save(AutoModelForCausalLM.from_pretrained(other).state_dict(), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with pytest.raises(UnknownBackbone, match="has none.*pytorch_model.bin.*save_pretrained"):
        Backbone.load(str(other))


def test_the_built_in_backbone_loads_and_speaks() -> None:
    backbone = Backbone.load("smollm2-135m")
    ids = torch.tensor([backbone.chat_ids("Name three colors.")])
    with torch.no_grad():
        out = backbone.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=backbone.tokenizer.pad_token_id)
    assert "red" in backbone.decode(out[0, ids.shape[1] :].tolist()).lower()
