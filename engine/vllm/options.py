"""What the vLLM engine is started with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from adapters.spec import Spec

# What vLLM reserves memory for; an adapter of a smaller rank is padded to it.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
MAX_RANK = 64  # unless an engine is started with another: also the largest that a sweep draws


class VLLMOptions(Spec):
    """`max_loras` counts adapters in one batch, `max_rows` requests in one; what is beyond waits."""

    max_loras: Annotated[int, Field(ge=1)] = 8
    max_lora_rank: int = MAX_RANK
    max_loaded: Annotated[int, Field(ge=1)] = 64  # adapters that vLLM holds in memory; it reads others from our files again
    max_rows: Annotated[int, Field(ge=1)] = 64
    max_model_len: Annotated[int, Field(ge=16)] | None = None  # None: the backbone's context
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    cache_gib: Annotated[float, Field(gt=0)] | None = None  # of the key-value cache; None: 1 on a CPU, what is left on a GPU
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the device computes it fast
    has_soft_prompts: bool = True
    is_eager: bool = False  # True: no compilation and no CUDA graphs; a CPU never has them here

    @field_validator("max_lora_rank")
    @classmethod
    def _one_of_its_ranks(cls, value: int) -> int:
        if value not in RANKS:
            raise ValueError(f"vLLM reserves adapters of the ranks {', '.join(map(str, RANKS))}, but got {value}. Use one.")
        return value


def check_servable(kind: str, rank: int, backbone_format: str) -> None:
    """Raises ValueError for a recipe of what vLLM does not serve. What a backbone says of it stands in tuning.servable."""
    if backbone_format != "full":
        raise ValueError(
            f'engine = "vllm" serves a backbone in its own dtype, but backbone_format is {backbone_format!r}. Set engine = '
            '"torch", or backbone_format = "full".'
        )
    if kind == "steering":
        raise ValueError('engine = "vllm" serves LoRA and soft thoughts, but adapter.kind is \'steering\'. Set engine = "torch".')
    if rank > MAX_RANK:
        raise ValueError(f'engine = "vllm" serves a rank of at most {MAX_RANK}, but adapter.lora.rank is {rank}. Lower it.')
