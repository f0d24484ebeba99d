"""The training methods, by name."""

from tuning.methods.sft import SFT

METHODS: dict[str, type[SFT]] = {"sft": SFT}
