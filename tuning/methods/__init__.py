"""The training methods, by name."""

from tuning.methods.method import Method
from tuning.methods.rewrite import Rewrite
from tuning.methods.rlvr import RLVR
from tuning.methods.sdft import SDFT
from tuning.methods.sft import SFT

METHODS: dict[str, type[Method]] = {
    "sft": SFT,
    "rewrite": Rewrite,
    "rlvr": RLVR,
    "sdft": SDFT,
}
