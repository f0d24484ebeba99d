"""The training methods, by name."""

from tuning.methods.sft import SFT, SFTSpec

METHODS: dict[str, type[SFT]] = {"sft": SFT}
METHOD_SPECS: dict[str, type[SFTSpec]] = {"sft": SFTSpec}
