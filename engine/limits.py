"""What one engine may hold and do at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """`max_cache_tokens` bounds the rows that run times the longest that any of them may become."""

    max_rows: int = 32
    max_batch_tokens: int = 4096  # of one forward
    max_cache_tokens: int = 65536
    prefill_chunk_tokens: int = 256  # of prompts, that one step reads beside one token for every running row
    max_prefix_tokens: int = 0  # of prompts that are kept for later requests; 0: none

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "max_prefix_tokens" else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but got {value}. Leave it out for the usual one.")
