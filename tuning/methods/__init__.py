"""The training methods, by name."""

from tuning.methods.compression import Compression
from tuning.methods.method import Method
from tuning.methods.sft import SFT

METHODS: dict[str, type[Method]] = {"sft": SFT, "compression": Compression}
