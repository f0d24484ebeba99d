"""The training methods, by name."""

from tuning.methods.method import Method
from tuning.methods.rlvr import RLVR
from tuning.methods.sdft import SDFT
from tuning.methods.sft import SFT
from tuning.methods.softcot import SoftCoTPlusPlus

METHODS: dict[str, type[Method]] = {"sft": SFT, "softcot": SoftCoTPlusPlus, "rlvr": RLVR, "sdft": SDFT}
