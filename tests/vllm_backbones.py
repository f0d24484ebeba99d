"""Backbones that vLLM runs on a CPU: its attention takes heads of 32 numbers and more."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapters.backbone import Backbone


def small_backbone(tokenizer_directory: Path, directory: Path) -> Backbone:
    """A random two-layer Llama with grouped heads over the tokenizer of another backbone. float32."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Backbone.load(str(directory), device="cpu", dtype=torch.float32)
