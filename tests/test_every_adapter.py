"""One contract over all adapter kinds: attached or served, the same; taken off, no trace; saved, the same again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fitted import fitted, fitted_lora, fitted_softcot
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.adapter import Adapter, Stack
from adapters.backbone import Backbone
from adapters.errors import AdapterError, BackboneMismatch, DamagedAdapter, RefusedAdapter
from adapters.files import ADAPTERS, SPECS, load_adapters, new_adapter, save_adapters
from adapters.lora import CONFIG, WEIGHTS, LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.engine import Continuation
from engine.profile import DecodingPolicy, Profile
from engine.torch_engine import TorchEngine

QUESTION = "Start with 12. Add 5, then take away 3. What is the result?"
EVERY = [*ADAPTERS, "all"]


def adapters_of(kind: str, backbone: Backbone) -> tuple[Adapter, ...]:
    """Fitted adapters of one kind, or one of each."""
    kinds = ADAPTERS if kind == "all" else [kind]
    return tuple(fitted(new_adapter(SPECS[each]()), backbone, seed) for seed, each in enumerate(kinds))


def backbone_logits(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        logits_TV: Tensor = backbone.model(torch.tensor([backbone.chat_ids(QUESTION)]), use_cache=False).logits[0]
    return logits_TV


def attached_logprobs(backbone: Backbone, adapters: tuple[Adapter, ...]) -> Tensor:
    """Of every token of the vocabulary after the question, [V]."""
    profile = Profile(adapters)
    with Stack(adapters).attach(backbone), torch.no_grad():
        embeds_TH = profile.transform(backbone, backbone.chat_ids(QUESTION)).embed(backbone.embeddings)
        logits_V: Tensor = backbone.model(inputs_embeds=embeds_TH[None], use_cache=False).logits[0, -1]
    return logits_V.log_softmax(-1)


def served_logprobs(backbone: Backbone, adapters: tuple[Adapter, ...]) -> Tensor:
    engine, prompt = TorchEngine(backbone), backbone.chat_ids(QUESTION)
    engine.load("served", Profile(adapters))
    asked = [Continuation(prompt, (token,)) for token in range(backbone.embeddings.num_embeddings)]
    scores = torch.tensor(engine.score(asked, "served"))[:, 0]
    engine.close()
    return scores


@pytest.mark.parametrize("kind", EVERY)
def test_attached_and_served_compute_the_same(backbone: Backbone, kind: str) -> None:
    adapters = adapters_of(kind, backbone)
    attached = attached_logprobs(backbone, adapters)
    torch.testing.assert_close(served_logprobs(backbone, adapters), attached, atol=1e-4, rtol=0.0)
    assert (attached - backbone_logits(backbone)[-1].log_softmax(-1)).abs().max() > 0.01


@pytest.mark.parametrize("kind", EVERY)
def test_detaching_restores_the_backbone_bit_for_bit(backbone: Backbone, kind: str) -> None:
    digest, logits_TV = backbone.weights_digest(), backbone_logits(backbone)
    modules = {path: type(module) for path, module in backbone.model.named_modules()}
    adapters = adapters_of(kind, backbone)
    with Stack(adapters).attach(backbone):
        for parameter in Stack(adapters).parameters():
            parameter.data.add_(1.0)
    assert backbone.weights_digest() == digest
    assert torch.equal(backbone_logits(backbone), logits_TV)
    assert {path: type(module) for path, module in backbone.model.named_modules()} == modules
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training


@pytest.mark.parametrize("kind", EVERY)
def test_detaching_after_an_error_restores_the_backbone(backbone: Backbone, kind: str) -> None:
    digest, adapters = backbone.weights_digest(), adapters_of(kind, backbone)
    with pytest.raises(RuntimeError, match="in the fit"), Stack(adapters).attach(backbone):
        raise RuntimeError("in the fit")
    assert backbone.weights_digest() == digest
    attached_logprobs(backbone, adapters)  # attaches again


@pytest.mark.parametrize("kind", EVERY)
def test_only_the_adapter_takes_gradients(backbone: Backbone, kind: str) -> None:
    adapters = tuple(new_adapter(SPECS[each]()) for each in (ADAPTERS if kind == "all" else [kind]))
    stack, prompt = Stack(adapters), backbone.chat_ids(QUESTION)
    with stack.attach(backbone):
        embeds_TH = Profile(adapters).transform(backbone, prompt).embed(backbone.embeddings)
        backbone.model(inputs_embeds=embeds_TH[None], use_cache=False).logits[0, -1].log_softmax(-1)[5].backward()
        for adapter in adapters:
            assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapter.parameters())
        ours = {id(parameter) for parameter in stack.parameters()}
        assert all(p.grad is None for p in backbone.model.parameters() if id(p) not in ours)


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_saved_loads_as_the_same_adapter(backbone: Backbone, kind: str, tmp_path: Path) -> None:
    adapters = tuple(adapter.scaled(0.5) for adapter in adapters_of(kind, backbone))
    Profile(adapters, DecodingPolicy(temperature=0.3)).save(tmp_path / "saved")
    loaded = Profile.load(tmp_path / "saved")
    assert [type(adapter) for adapter in loaded.adapters] == [type(adapter) for adapter in adapters]
    assert loaded.policy == DecodingPolicy(temperature=0.3)
    for one, two in zip(loaded.adapters, adapters, strict=True):
        ours, theirs = one.tensors(), two.tensors()  # type: ignore[attr-defined]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(served_logprobs(backbone, loaded.adapters), served_logprobs(backbone, adapters))


@pytest.mark.parametrize("kind", EVERY)
def test_a_scale_changes_a_copy(backbone: Backbone, kind: str) -> None:
    adapters = adapters_of(kind, backbone)
    full = served_logprobs(backbone, adapters)
    halved = served_logprobs(backbone, Profile(adapters).scaled(0.5).adapters)
    assert not torch.allclose(full, halved, atol=1e-3)
    assert torch.equal(served_logprobs(backbone, adapters), full)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("damage", ["cut", "text", "missing", "nan"])
def test_damaged_weights_are_refused(backbone: Backbone, kind: str, damage: str, tmp_path: Path) -> None:
    save_adapters(adapters_of(kind, backbone), tmp_path / "saved")
    file = next((tmp_path / "saved").rglob(WEIGHTS))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif damage == "missing":
        file.unlink()
    else:
        bytes_ = bytearray(file.read_bytes())
        bytes_[-4:] = b"\x00\x00\xc0\x7f"  # a float32 NaN, little-endian
        file.write_bytes(bytes(bytes_))
    with pytest.raises(DamagedAdapter, match=r"Save or download|fit again"):
        load_adapters(tmp_path / "saved")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_damaged_config_is_refused(backbone: Backbone, kind: str, tmp_path: Path) -> None:
    save_adapters(adapters_of(kind, backbone), tmp_path / "saved")
    config = next((tmp_path / "saved").rglob(CONFIG))
    config.write_text(config.read_text()[:-20])
    with pytest.raises(DamagedAdapter, match=CONFIG):
        load_adapters(tmp_path / "saved")


def test_a_directory_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedAdapter, match="no adapter_config.json"):
        load_adapters(tmp_path)
    with pytest.raises(DamagedAdapter, match="is none"):
        load_adapters(tmp_path / "absent")


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "loftq", "lora_ga", "eva"])
def test_inits_that_rewrite_the_base_are_refused(init: str) -> None:
    with pytest.raises(ValueError, match="rewrite the base weight"):
        LoRASpec(init=init)


def test_a_lora_fitted_on_a_rewritten_base_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((fitted_lora(backbone, 1),), tmp_path / "saved")
    config = tmp_path / "saved" / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(RefusedAdapter, match="pissa_niter_4.*rewrites the base weight"):
        load_adapters(tmp_path / "saved")


@pytest.mark.parametrize("values", [{"rank": 0}, {"alpha": -1}, {"ranks": 4}])
def test_impossible_specs_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1|Extra inputs"):
        LoRASpec(**values)  # type: ignore[arg-type]


@pytest.fixture
def other_backbone(backbone_directory: Path, tmp_path: Path) -> Backbone:
    """The same shapes, other weights."""
    model = AutoModelForCausalLM.from_pretrained(backbone_directory)
    model.model.norm.weight.data.add_(0.1)
    model.save_pretrained(tmp_path / "other")
    for file in backbone_directory.glob("token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    return Backbone.load(str(tmp_path / "other"), device="cpu")


def test_soft_thoughts_of_another_backbone_are_refused(backbone: Backbone, other_backbone: Backbone, tmp_path: Path) -> None:
    save_adapters((fitted_softcot(backbone, 1),), tmp_path / "saved")
    engine = TorchEngine(other_backbone)
    with pytest.raises(BackboneMismatch, match=f"{backbone.fingerprint[:12]}.*{other_backbone.fingerprint[:12]}"):
        engine.load("saved", Profile.load(tmp_path / "saved"))
    assert engine.loaded == ()


def test_a_lora_for_modules_that_are_not_there_is_refused(backbone: Backbone) -> None:
    tensors = {key.replace("q_proj", "w_query"): tensor for key, tensor in fitted_lora(backbone, 1).tensors().items()}
    with pytest.raises(AdapterError, match="w_query.*Load the backbone"):
        TorchEngine(backbone).load("saved", Profile((LoRA(LoRASpec(rank=4), tensors=tensors),)))


def test_two_soft_prompts_are_refused(backbone: Backbone) -> None:
    adapters = (fitted_softcot(backbone, 1), fitted_softcot(backbone, 2))
    with pytest.raises(RefusedAdapter, match="one adapter only"):
        TorchEngine(backbone).load("twice", Profile(adapters))


def test_peft_loads_what_was_saved_with_equal_logits(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    lora = fitted_lora(backbone, 1).scaled(0.75)
    save_adapters((lora,), tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(plain, str(tmp_path / "saved")).eval()
    with torch.no_grad():
        logits_V = peft_model(torch.tensor([backbone.chat_ids(QUESTION)])).logits[0, -1]
    torch.testing.assert_close(served_logprobs(backbone, (lora,)), logits_V.log_softmax(-1), atol=1e-4, rtol=0.0)


def test_soft_thoughts_stand_at_the_end_of_the_users_turn(backbone: Backbone) -> None:
    ids = backbone.chat_ids(QUESTION)
    prompt = Profile((fitted_softcot(backbone, 1),)).transform(backbone, ids)
    header = backbone.assistant_header
    assert prompt.ids[-len(header) :] == header
    assert prompt.ids[: len(ids) - len(header)] == ids[: -len(header)]
    assert len(prompt.ids) == len(ids) + 3 + 2
    assert prompt.soft_at == len(ids) - len(header) + 1


def test_without_a_chat_template_soft_thoughts_stand_at_the_end_of_the_prompt(backbone_directory: Path) -> None:
    plain = Backbone.load(str(backbone_directory))
    plain.tokenizer.chat_template = None
    assert plain.user_header == plain.assistant_header == ()
    prompt = Profile((fitted_softcot(plain, 1),)).transform(plain, ids := tuple(plain.encode(QUESTION)))
    assert prompt.ids[: len(ids)] == ids and len(prompt.ids) == len(ids) + 5 and prompt.soft_at == len(ids) + 1
    assert prompt.soft_KH is not None and prompt.soft_KH.shape[0] == 3


def test_static_thoughts_do_not_know_the_question(backbone: Backbone) -> None:
    static = fitted(SoftCoT(SoftCoTSpec(num_thoughts=3, static=True)), backbone, 1)
    one, two = (Profile((static,)).transform(backbone, backbone.chat_ids(text)).soft_KH for text in ("Add 5.", QUESTION))
    assert one is not None and two is not None and torch.equal(one, two)
