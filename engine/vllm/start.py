"""Starting vLLM over a backbone: its own process, the layers that may be updated, and our logits processor."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from vllm import AsyncEngineArgs
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from adapters.backbone import Backbone, fast_bfloat16
from engine.engine import MAX_TOP_LOGPROBS
from engine.vllm.checkpoint import checkpoint_of
from engine.vllm.gate import WRAPPED
from engine.vllm.options import VLLMOptions

_GIB = 2**30
_CPU_CACHE_GIB = 1.0
FIRST_RUNNER = "engine.vllm.processor:ChosenTokens"
SECOND_RUNNER = "engine.vllm.processor_v2:ChosenTokens"


def runs_on_cpu() -> bool:
    return bool(current_platform.is_cpu())


async def start(backbone: Backbone, options: VLLMOptions) -> AsyncLLM:
    """In the event loop that is to speak to it. Takes half a minute and more."""
    # Telling vLLM's makers of every start is opted into, not out of; a forked process would inherit our threads' locks.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    return AsyncLLM.from_vllm_config(config_of(backbone, options, checkpoint_of(backbone)))


def config_of(backbone: Backbone, options: VLLMOptions, directory: Path) -> VllmConfig:
    on_cpu = runs_on_cpu()
    cache_gib = options.cache_gib or (_CPU_CACHE_GIB if on_cpu else None)
    max_loras = options.max_loras + on_cpu  # one slot holds the zeros that the base is served with
    length = min(options.max_model_len or backbone.context_length, backbone.context_length)
    arguments = AsyncEngineArgs(
        model=str(directory),
        dtype=dtype_of(backbone, options),
        max_model_len=length,
        max_num_seqs=options.max_rows,
        enforce_eager=options.is_eager or on_cpu,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * _GIB),
        enable_lora=True,
        max_loras=max_loras,
        max_cpu_loras=max(options.max_loaded, max_loras) + on_cpu,
        max_lora_rank=options.max_lora_rank,
        lora_target_modules=list(WRAPPED),
        enable_prompt_embeds=options.has_soft_prompts,
        max_logprobs=MAX_TOP_LOGPROBS,
        structured_outputs_config=StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True),
        generation_config="vllm",  # a request says all of it
        additional_config={"graftline": {"name": backbone.name, "stop_ids": sorted(backbone.stop_ids)}},
        async_scheduling=False,  # the first runner would tell our processor tokens that it does not know yet
        disable_log_stats=True,
        enable_log_requests=False,
    )
    config = arguments.create_engine_config()
    # Known only now: each runner refuses the other's classes.
    config.model_config.logits_processors = [SECOND_RUNNER if config.use_v2_model_runner else FIRST_RUNNER]
    return config


def dtype_of(backbone: Backbone, options: VLLMOptions) -> str:
    if options.dtype != "auto":
        return options.dtype
    if backbone.dtype != torch.float32:
        return str(backbone.dtype).removeprefix("torch.")
    return "bfloat16" if not runs_on_cpu() or fast_bfloat16(torch.device("cpu")) else "float32"
