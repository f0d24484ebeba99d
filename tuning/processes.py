"""The processes that fit one adapter together, as torchrun or `accelerate launch` started them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """`in_step`: each holds a part of the backbone, so that all of them must run every layer equally often."""

    index: int = 0
    count: int = 1
    in_step: bool = False

    @classmethod
    def here(cls) -> Processes:
        """By the variables that the launchers set; this process alone where there are none."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        asked = (os.environ.get(name, "false") for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
        sharded = any(value.lower() == "true" for value in asked)
        return cls(int(os.environ.get("RANK", "0")), count, sharded)

    @property
    def is_main(self) -> bool:
        return self.index == 0
