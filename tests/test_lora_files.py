"""PEFT's LoRA files from elsewhere: what is run is all that they say, and the rest is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import fitted_lora
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import CONFIG, WEIGHTS, LoRA
from adapters.vocabulary import NoVocabulary

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path: Path, backbone: Backbone) -> Path:
    fitted_lora(backbone, seed=1).save(tmp_path)
    return tmp_path


def with_config(directory: Path, **values: Any) -> Path:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **values}))
    return directory


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", "all"),
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("a_field_of_a_later_peft", True),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_setting_that_would_not_act_is_refused_by_its_name(saved: Path, name: str, value: object) -> None:
    with pytest.raises(RefusedAdapter, match=f"sets {name}=.*Convert it"):
        LoRA.load(with_config(saved, **{name: value}))


@pytest.mark.parametrize(
    "values",
    [{}, {"layers_to_transform": [0, 1]}, {"fan_in_fan_out": True}, {"init_lora_weights": "eva"}, {"a_later_field": None}],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_setting_of_no_effect_is_read(saved: Path, values: dict[str, Any]) -> None:
    before = LoRA.load(saved).tensors()
    after = LoRA.load(with_config(saved, **values)).tensors()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "key",
    [
        f"{LAYER}.lora_B.bias",
        f"{LAYER}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.lm_head.weight",
    ],
)
def test_a_tensor_that_would_not_act_is_refused_by_its_name(saved: Path, key: str) -> None:
    save_file({**load_file(saved / WEIGHTS), key: torch.ones(4, 4)}, saved / WEIGHTS)
    with pytest.raises(RefusedAdapter, match=f"also holds {key}"):
        LoRA.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: None,
        lambda config: setattr(config, "use_rslora", True),
        lambda config: setattr(config, "exclude_modules", ["layers.0.mlp.down_proj"]),
    ],
    ids=["plain", "rslora", "all but one"],
)
def test_what_peft_made_computes_the_same_here(
    tmp_path: Path, backbone: Backbone, backbone_directory: Path, change: Callable[[LoraConfig], None]
) -> None:
    config = LoraConfig(
        r=8, lora_alpha=20, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    change(config)
    torch.manual_seed(0)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32), config)
    made.save_pretrained(tmp_path)
    ids = torch.tensor([backbone.encode("Start with 12.")])
    wanted = made(ids).logits
    assert isinstance(made, PeftModel) and not torch.allclose(wanted, backbone.model(ids).logits, atol=1e-2)
    with LoRA.load(tmp_path).attach(backbone), torch.no_grad():
        assert torch.allclose(backbone.model(ids).logits, wanted, atol=1e-5)


@pytest.mark.parametrize(("excluded", "said"), [(["q_proj"], "in exclude_modules"), ("(a+)+$", "has a pattern")])
def test_weights_that_peft_would_leave_out_are_refused(saved: Path, excluded: object, said: str) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, "exclude_modules": excluded}))
    with pytest.raises(RefusedAdapter, match=said):
        LoRA.load(saved)


def test_a_tokenizer_that_cannot_be_read_as_bytes_is_told_so() -> None:
    """The story reader's is of whole words."""
    reader = Backbone.load(str(Path(__file__).parent / "story_reader"), device="cpu", dtype=torch.float32)
    with pytest.raises(NoVocabulary, match="cannot read this backbone's tokenizer"):
        reader.vocabulary.prepare()
