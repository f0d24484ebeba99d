"""The training methods, by name."""

from tuning.methods.compression import Compression
from tuning.methods.criteria import Criteria
from tuning.methods.critique import CritiqueTuning
from tuning.methods.method import Method
from tuning.methods.rewrite import Rewrite
from tuning.methods.rlag import RLAG
from tuning.methods.rlag_grpo import RLAGGRPO
from tuning.methods.rlsf import RLSF
from tuning.methods.rlvr import RLVR
from tuning.methods.sdft import SDFT
from tuning.methods.sft import SFT
from tuning.methods.softcot import SoftCoTPlusPlus
from tuning.methods.star import STaR

METHODS: dict[str, type[Method]] = {
    "sft": SFT,
    "softcot": SoftCoTPlusPlus,
    "rewrite": Rewrite,
    "star": STaR,
    "critique": CritiqueTuning,
    "criteria": Criteria,
    "rlvr": RLVR,
    "rlsf": RLSF,
    "sdft": SDFT,
    "rlag": RLAG,
    "rlag_grpo": RLAGGRPO,
    "compression": Compression,
}
