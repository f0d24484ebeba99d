"""A sparse autoencoder: what it computes, its files, and its features as steering adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.adapter import Stack
from adapters.backbone import Backbone
from adapters.combined import combined
from adapters.control_vector import export_control_vector
from adapters.errors import BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.files import load_adapters
from adapters.lora import LoRA, LoRASpec
from adapters.sae import SAE, SAERecord
from adapters.steering import Steering
from engine.engine import Continuation, GenerationRequest
from engine.profile import Profile
from engine.torch_engine import TorchEngine

QUESTION = "Start with 12. Add 5, then take away 3."
FEATURE, LAYER = 5, 1


def random_sae(backbone: Backbone, seed: int = 0, num_features: int = 64, k: int = 4) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    w_dec_FH = torch.randn(num_features, backbone.hidden_size, generator=generator)
    w_dec_FH /= w_dec_FH.norm(dim=-1, keepdim=True)
    b_enc_F, b_dec_H = (0.1 * torch.randn(size, generator=generator) for size in (num_features, backbone.hidden_size))
    record = SAERecord(
        layer=LAYER, backbone=backbone.name, backbone_fingerprint=backbone.fingerprint, threshold=0.2, told={"fit": {"k": k}}
    )
    max_act_F, frequency_F = torch.full((num_features,), 3.0), torch.full((num_features,), 0.1)
    max_act_F[0] = frequency_F[0] = 0.0
    return SAE(w_dec_FH.T.clone(), b_enc_F, w_dec_FH, b_dec_H, k, record, max_act_F, frequency_F)


def logits(backbone: Backbone, *adapters: Steering) -> Tensor:
    ids_BT = torch.tensor([backbone.chat_ids(QUESTION)])
    with Stack(adapters).attach(backbone), torch.no_grad():
        found: Tensor = backbone.model(ids_BT, use_cache=False).logits[0]
    return found


def test_only_the_k_largest_are_active_and_none_is_below_zero(backbone: Backbone) -> None:
    sae = random_sae(backbone)
    states_NH = torch.randn(20, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    acts_NF, read_NF = sae.encode(states_NH), (states_NH - sae.b_dec_H) @ sae.w_enc_HF + sae.b_enc_F
    assert ((acts_NF > 0).sum(dim=1) <= sae.k).all() and (acts_NF >= 0).all()
    best_NF = torch.zeros_like(read_NF).scatter(1, read_NF.topk(sae.k, dim=1).indices, 1.0)
    assert torch.equal(acts_NF, torch.where(best_NF.bool(), read_NF.relu(), torch.zeros(1)))
    torch.testing.assert_close(sae.reconstructed(states_NH), sae.decode(acts_NF))


def test_files_have_the_layout_that_saelens_reads(backbone: Backbone, tmp_path: Path) -> None:
    # sae_lens 6: SAE.load_from_disk builds TopKSAEConfig from cfg.json and loads exactly these tensors, strictly.
    sae = random_sae(backbone)
    sae.save(tmp_path / "sae")
    tensors, config = load_file(tmp_path / "sae" / "sae_weights.safetensors"), json.loads((tmp_path / "sae/cfg.json").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    hidden = backbone.hidden_size
    assert shapes == {"W_enc": (hidden, 64), "b_enc": (64,), "W_dec": (64, hidden), "b_dec": (hidden,)}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "topk",
        "d_in": hidden,
        "d_sae": 64,
        "k": 4,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    # Without a version of 6 or later the config is taken for an older form.
    assert metadata["sae_lens_version"] == "6.0.0" and metadata["hook_name"] == f"model.layers.{LAYER}"


def test_what_is_saved_loads_as_the_same_autoencoder(backbone: Backbone, tmp_path: Path) -> None:
    sae = random_sae(backbone)
    sae.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    states_NH = torch.randn(8, backbone.hidden_size, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.encode(states_NH), sae.encode(states_NH)) and loaded.record == sae.record
    assert torch.equal(loaded.max_act_F, sae.max_act_F) and torch.equal(loaded.frequency_F, sae.frequency_F)


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors", "graftline.json", "features.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_autoencoder_is_refused(backbone: Backbone, tmp_path: Path, file: str, damage: str) -> None:
    random_sae(backbone).save(tmp_path)
    if damage == "cut":
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-20])
    else:
        (tmp_path / file).unlink()
    with pytest.raises(DamagedAdapter, match=file.split(".")[0]):
        SAE.load(tmp_path)


def test_an_autoencoder_of_another_kind_or_shape_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    random_sae(backbone).save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "architecture": "standard"}))
    with pytest.raises(DamagedAdapter, match="another kind"):
        SAE.load(tmp_path)
    with pytest.raises(DamagedAdapter, match="fit each other"):
        replace(random_sae(backbone), b_dec_H=torch.zeros(3))
    with pytest.raises(RefusedAdapter, match="k=64 and 64 features"):
        random_sae(backbone, k=64)


@pytest.mark.parametrize("form", ["column", "clamp"])
def test_a_feature_steers_alike_attached_served_and_loaded(backbone: Backbone, tmp_path: Path, form: str) -> None:
    steering = random_sae(backbone).steering(backbone, FEATURE, form, 2.0)
    attached = logits(backbone, steering)[-1].log_softmax(-1)
    assert (attached - logits(backbone)[-1].log_softmax(-1)).abs().max() > 0.01
    Profile((steering,)).save(tmp_path / "saved")
    (loaded,) = load_adapters(tmp_path / "saved")
    assert isinstance(loaded, Steering)
    engine = TorchEngine(backbone)
    asked = [Continuation(backbone.chat_ids(QUESTION), (token,)) for token in range(40)]
    for one in (steering, loaded):
        engine.load("feature", Profile((one,)))
        served = torch.tensor(engine.score(asked, "feature"))[:, 0]
        torch.testing.assert_close(served, attached[:40], atol=1e-4, rtol=0.0)


def test_a_held_feature_is_at_its_level_everywhere_and_all_else_is_left(backbone: Backbone) -> None:
    sae = random_sae(backbone)
    hold, generator = sae.hold(FEATURE, 2.5), torch.Generator().manual_seed(3)
    states_BTH = torch.randn(1, 99, backbone.hidden_size, generator=generator)
    column_H, encoder_H = sae.w_dec_FH[FEATURE], sae.w_enc_HF[:, FEATURE]
    missing_BT1 = hold.missing(states_BTH)
    read_BT = (states_BTH - sae.b_dec_H) @ encoder_H + sae.b_enc_F[FEATURE]
    active_BT = torch.where(read_BT > sae.record.threshold, read_BT, torch.zeros(1))
    torch.testing.assert_close(missing_BT1[..., 0], 2.5 - active_BT)
    # With a unit column that is the encoder's row too, the feature then reads its level where it was active.
    after_BT = (states_BTH + missing_BT1 * column_H - sae.b_dec_H) @ encoder_H + sae.b_enc_F[FEATURE]
    torch.testing.assert_close(after_BT[active_BT > 0], torch.full_like(after_BT[active_BT > 0], 2.5))
    assert (active_BT > 0).any() and ((read_BT > 0) & (active_BT == 0)).any()


def test_the_clamp_form_is_setting_the_activation_and_keeping_the_error(backbone: Backbone) -> None:
    # As SAE-Reasoning does it: z = encode(h), z_f = c, decode(z) + (h - decode(encode(h))).
    sae = replace(random_sae(backbone, k=63), record=random_sae(backbone).record.model_copy(update={"threshold": 0.0}))
    states_NH = torch.randn(50, backbone.hidden_size, generator=torch.Generator().manual_seed(4))
    acts_NF = sae.encode(states_NH)
    kept = acts_NF[:, FEATURE] > 0
    error_NH, changed_NF = states_NH - sae.decode(acts_NF), acts_NF.clone()
    changed_NF[:, FEATURE] = 1.5
    expected_NH = sae.decode(changed_NF) + error_NH
    ours_NH = states_NH + sae.hold(FEATURE, 1.5).missing(states_NH) * sae.w_dec_FH[FEATURE]
    assert kept.sum() > 10
    torch.testing.assert_close(ours_NH[kept], expected_NH[kept], atol=1e-5, rtol=1e-4)


def test_zero_strength_gives_the_backbones_logits_exactly(backbone: Backbone) -> None:
    sae, plain = random_sae(backbone), logits(backbone)
    assert torch.equal(logits(backbone, sae.steering(backbone, FEATURE, "column", 0.0)), plain)
    assert torch.equal(logits(backbone, sae.steering(backbone, FEATURE, "clamp", 2.0).scaled(0.0)), plain)
    assert not torch.equal(logits(backbone, sae.steering(backbone, FEATURE, "clamp", 0.0)), plain)  # takes the feature out


def test_rows_that_hold_a_feature_leave_the_others_alone(backbone: Backbone) -> None:
    engine, sae = TorchEngine(backbone), random_sae(backbone)
    for form in ("column", "clamp"):
        engine.load(form, Profile((sae.steering(backbone, FEATURE, form, 4.0),)))
    asked = [GenerationRequest(backbone.chat_ids(QUESTION), name, max_new_tokens=6) for name in (None, "column", "clamp", None)]
    together, alone = engine.complete(asked), [engine.complete([request])[0] for request in asked]
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]
    assert together[0].token_ids == together[3].token_ids != together[2].token_ids
    engine.unload("clamp")
    assert engine.complete(asked[:1])[0].token_ids == together[0].token_ids


def test_an_engine_made_while_a_feature_is_held_has_the_bare_backbone(backbone: Backbone) -> None:
    plain = TorchEngine(backbone).score([Continuation(backbone.chat_ids(QUESTION), (7,))])
    with random_sae(backbone).steering(backbone, FEATURE, "clamp", 4.0).attach(backbone):
        assert TorchEngine(backbone).score([Continuation(backbone.chat_ids(QUESTION), (7,))]) == plain


def test_a_held_feature_is_no_control_vector_and_no_bias(backbone: Backbone, tmp_path: Path) -> None:
    held = random_sae(backbone).steering(backbone, FEATURE, "clamp", 1.0)
    with pytest.raises(RefusedAdapter, match="holds a feature"):
        export_control_vector(tmp_path / "out.gguf", [held], backbone)
    with pytest.raises(RefusedAdapter, match="holds a feature"):
        combined(LoRA(LoRASpec()), held)
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_steer_is_refused(backbone: Backbone) -> None:
    sae = random_sae(backbone)
    foreign = replace(sae, record=sae.record.model_copy(update={"backbone_fingerprint": "f" * 64}))
    with pytest.raises(BackboneMismatch, match="trained on backbone"):
        foreign.steering(backbone, FEATURE, "column", 1.0)
    with pytest.raises(RefusedAdapter, match="features are 0 to 63, but 64"):
        sae.steering(backbone, 64, "column", 1.0)
    with pytest.raises(RefusedAdapter, match="active at no harvested place"):
        sae.steering(backbone, 0, "column", 1.0)
    with pytest.raises(RefusedAdapter, match="a finite number of largest activations, but got nan"):
        sae.steering(backbone, FEATURE, "column", float("nan"))
    with pytest.raises(RefusedAdapter, match="Say column or clamp"):
        sae.steering(backbone, FEATURE, "sideways", 1.0)
