"""A steering vector's files: PEFT computes with them what the hook does, and llama.cpp's control vectors come back whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fitted import fitted, fitted_lora, random_steering
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
)

from adapters.backbone import RAW, Backbone
from adapters.combined import combined
from adapters.control_vector import export_control_vector, import_control_vector
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.files import load_adapters, save_adapters
from adapters.lora import CONFIG, PREFIX, WEIGHTS, LoRA, LoRASpec
from adapters.steering import Steering, SteeringSpec
from adapters.steering_files import LastLinear, last_linear
from engine.engine import Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine

QUESTION = "Start with 12. Add 5, then take away 3."


def with_block(backbone: Backbone, architecture: str) -> Backbone:
    """A random model whose blocks do something to what their mlp puts out."""
    small: dict[str, Any] = {
        "vocab_size": len(backbone.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if architecture == "norm after the mlp":
        model: PreTrainedModel = Olmo2ForCausalLM(Olmo2Config(**small))
    else:
        model = GraniteForCausalLM(GraniteConfig(**small, residual_multiplier=0.5))
    return Backbone(architecture, model.eval().requires_grad_(False), backbone.tokenizer, architecture)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("layer", [0, 1])
def test_peft_computes_with_the_file_what_the_hook_does(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path, layer: int
) -> None:
    steering = random_steering(backbone, layer).at(0.7).scaled(0.5)
    save_adapters((steering,), tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32)
    ids = torch.tensor([backbone.chat_ids(QUESTION)])
    with torch.no_grad():
        bare = plain(ids).logits
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "saved" / "steering")).eval()(ids).logits
        with steering.attach(backbone):
            ours = backbone.model(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0.0)
    assert (ours - bare).abs().max() > 0.1


def test_the_last_linear_layer_of_a_pre_norm_block_is_found(backbone: Backbone) -> None:
    found = last_linear(backbone, 1)
    assert found is not None and (found.path, found.num_in) == ("model.layers.1.mlp.down_proj", 64)
    with fitted_lora(backbone, 1).attach(backbone):
        assert last_linear(backbone, 1) == found


@pytest.mark.parametrize("architecture", ["norm after the mlp", "scaled residual"])
def test_a_block_that_norms_or_scales_its_mlp_is_steered_by_the_hook_alone(
    backbone: Backbone, tmp_path: Path, architecture: str
) -> None:
    other = with_block(backbone, architecture)
    steering = random_steering(other, 1)
    assert last_linear(other, 1) is None
    save_adapters((steering,), tmp_path)
    assert json.loads((tmp_path / "steering" / CONFIG).read_text())["peft_type"] == "STEERING"
    (loaded,) = load_adapters(tmp_path)
    assert torch.equal(loaded.contribution().residual[1], steering.contribution().residual[1])


def test_a_vector_for_peft_shares_a_batch_with_domain_loras(backbone: Backbone, tmp_path: Path) -> None:
    steering, lora = random_steering(backbone, 1, size=3.0), fitted_lora(backbone, 1)
    save_adapters((steering,), tmp_path)
    packed = LoRA.load(tmp_path / "steering")  # as anyone's plain PEFT files
    engine = TorchEngine(backbone)
    for name, adapter in (("hooked", steering), ("packed", packed), ("domain", lora)):
        engine.load(name, Profile((adapter,)))
    names = ("hooked", "domain", "packed", None)
    asked = [GenerationRequest(backbone.chat_ids(QUESTION), name, max_new_tokens=8) for name in names]
    together = [done.token_ids for done in engine.complete(asked)]
    assert together == [engine.complete([request])[0].token_ids for request in asked]
    assert together[0] == together[2] and len(set(together)) == 3
    one = [Continuation(backbone.chat_ids(QUESTION), tuple(backbone.encode("Answer: 14")))]
    hooked, biased = (torch.tensor(engine.score(one, name)[0]) for name in ("hooked", "packed"))
    torch.testing.assert_close(hooked, biased, atol=1e-5, rtol=0.0)


def test_a_lora_with_a_bias_is_itself_again_when_saved(backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((random_steering(backbone, 1).at(0.3),), tmp_path)
    lora = LoRA.load(tmp_path / "steering").scaled(0.5)
    save_adapters((lora,), tmp_path / "again")
    (again,) = load_adapters(tmp_path / "again")
    ids = torch.tensor([backbone.chat_ids(QUESTION)])
    with torch.no_grad():
        with lora.attach(backbone):
            before = backbone.model(ids).logits
        with again.attach(backbone):
            torch.testing.assert_close(backbone.model(ids).logits, before)


def test_a_bias_is_lost_by_no_sum_of_adapters(backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((random_steering(backbone, 1),), tmp_path)
    packed, lora = LoRA.load(tmp_path / "steering"), fitted_lora(backbone, 1)
    both = Profile((lora, packed))
    with lora.attach(backbone), random_steering(backbone, 1).attach(backbone), torch.no_grad():
        wanted = backbone.model(torch.tensor([backbone.chat_ids(QUESTION)])).logits[0, -1].log_softmax(-1)
    engine = TorchEngine(backbone)
    engine.load("both", both)
    scores = engine.score([Continuation(backbone.chat_ids(QUESTION), (token,)) for token in range(20)], "both")
    torch.testing.assert_close(torch.tensor(scores)[:, 0], wanted[:20], atol=1e-4, rtol=0.0)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_a_lora_and_a_vector_are_one_lora_for_peft_too(
    backbone: Backbone, backbone_directory: Path, tmp_path: Path, targets: Literal["all-linear", "attention"]
) -> None:
    lora = fitted(LoRA(LoRASpec(rank=4, target_modules=targets)), backbone, 1).scaled(0.5)
    steering = random_steering(backbone, 1).at(0.7)
    ids = torch.tensor([backbone.chat_ids(QUESTION)])
    with lora.attach(backbone), steering.attach(backbone), torch.no_grad():
        wanted = backbone.model(ids).logits
    one = combined(lora, steering)
    save_adapters((one,), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()(ids).logits
        with one.attach(backbone):
            ours = backbone.model(ids).logits
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(theirs, wanted, atol=1e-5, rtol=0.0)


def test_a_vector_that_acts_by_the_hook_is_no_part_of_a_lora(backbone: Backbone) -> None:
    other = with_block(backbone, "norm after the mlp")
    with pytest.raises(RefusedAdapter, match="this one's does not"):
        combined(fitted_lora(other, 1), random_steering(other, 1))
    with pytest.raises(RefusedAdapter, match="of scale 0"):
        combined(fitted_lora(backbone, 1).scaled(0.0), random_steering(backbone, 1))


def test_a_strength_that_was_changed_by_hand_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((random_steering(backbone, 1),), tmp_path)
    config = tmp_path / "steering" / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 2.0}))
    with pytest.raises(DamagedAdapter, match="lora_alpha of 2"):
        load_adapters(tmp_path)


def test_a_lora_that_poses_as_a_vector_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((random_steering(backbone, 1),), tmp_path)
    fitted_lora(backbone, 1).save(tmp_path / "steering")
    with pytest.raises(DamagedAdapter, match="holds more"):
        load_adapters(tmp_path)


def test_vectors_that_were_saved_before_peft_could_read_them_still_load(backbone: Backbone, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    steering = random_steering(backbone, 1)
    place = tmp_path / "steering"
    place.mkdir()
    save_file(steering.tensors(), place / WEIGHTS)
    told = {"spec": {"kind": "steering", "layer": 1, "gamma": 0.5}, "scale": 1.0, "layer": 1}
    config = {"peft_type": "STEERING", "format_version": 1, **told, "backbone_fingerprint": backbone.fingerprint}
    (place / CONFIG).write_text(json.dumps(config))
    (loaded,) = load_adapters(tmp_path)
    assert torch.equal(loaded.contribution().residual[1], 0.5 * steering.tensors()["vector"])


def test_a_control_vector_comes_back_as_the_same_adapter(backbone: Backbone, tmp_path: Path) -> None:
    steering = random_steering(backbone, 1).at(0.3).scaled(0.5)
    export_control_vector(tmp_path / "c.gguf", (steering,), backbone)
    (back,) = import_control_vector(tmp_path / "c.gguf", backbone)
    assert back.layer == 1
    torch.testing.assert_close(back.contribution().residual[1], steering.contribution().residual[1])


def test_a_control_vector_is_written_as_llama_cpp_reads_it(backbone: Backbone, tmp_path: Path) -> None:
    from gguf import GGUFReader

    export_control_vector(tmp_path / "c.gguf", (random_steering(backbone, 1),), backbone)
    reader = GGUFReader(tmp_path / "c.gguf")
    text = {name: bytes(field.parts[field.data[0]]) for name, field in reader.fields.items() if field.data}
    assert text["general.architecture"] == b"controlvector" and text["controlvector.model_hint"] == b"llama"
    assert reader.fields["controlvector.layer_count"].parts[-1][0] == 2
    (tensor,) = reader.tensors
    assert tensor.name == "direction.1" and tensor.tensor_type.name == "F32" and list(tensor.shape) == [32]
    assert np.array_equal(tensor.data, random_steering(backbone, 1).tensors()["vector"].numpy())


def test_what_llama_cpp_could_not_steer_is_not_exported(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(RefusedAdapter, match="after layer 0"):
        export_control_vector(tmp_path / "c.gguf", (random_steering(backbone, 0),), backbone)
    foreign = Steering(SteeringSpec(layer=1), 1.0, torch.ones(backbone.hidden_size), 1, "f" * 64)
    with pytest.raises(BackboneMismatch):
        export_control_vector(tmp_path / "c.gguf", (foreign,), backbone)
    with pytest.raises(RefusedAdapter, match="got none"):
        export_control_vector(tmp_path / "c.gguf", (), backbone)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_control_vector_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    with pytest.raises(DamagedAdapter, match="not there"):
        import_control_vector(tmp_path / "c.gguf", backbone)
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(DamagedAdapter, match="not a whole GGUF file"):
        import_control_vector(tmp_path / "c.gguf", backbone)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", np.zeros(2, dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    with pytest.raises(RefusedAdapter, match="has 'llama'"):
        import_control_vector(tmp_path / "m.gguf", backbone)


@pytest.mark.slow
def test_the_built_in_backbone_is_steered_by_a_bias_as_by_the_hook() -> None:
    backbone = Backbone.load(RAW, device="cpu", dtype=torch.float32)
    layer = SteeringSpec(layer=0.6).index(len(backbone.layers))
    assert last_linear(backbone, layer) == LastLinear("model.layers.18.mlp.down_proj", 1536)
    steering, ids = random_steering(backbone, layer, size=3.0), torch.tensor([backbone.chat_ids(QUESTION)])
    zeros = {f"{PREFIX}model.layers.0.mlp.down_proj.lora_A.weight": torch.zeros(1, 1536)}
    zeros |= {f"{PREFIX}model.layers.0.mlp.down_proj.lora_B.weight": torch.zeros(backbone.hidden_size, 1)}
    packed = combined(LoRA(LoRASpec(rank=1, alpha=1), tensors=zeros), steering)
    with torch.no_grad():
        bare = backbone.model(ids).logits
        with steering.attach(backbone):
            hooked = backbone.model(ids).logits
        with packed.attach(backbone):
            biased = backbone.model(ids).logits
    torch.testing.assert_close(biased, hooked, atol=1e-4, rtol=0.0)
    assert (hooked - bare).abs().max() > 0.1
