"""What a profile must be before an engine serves it."""

from __future__ import annotations

import torch

from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter
from engine.decoding.row_policy import refuse_unable
from engine.errors import EngineError
from engine.profile import Profile


def refuse_unservable(name: str, profile: Profile, backbone: Backbone, capabilities: frozenset[str]) -> None:
    """For all but its weights in the layers, which the bank looks at."""
    refuse_unable(profile.policy, capabilities, "the engine", profile.routing)
    if profile.routing is not None:
        if not profile.adapters:
            raise EngineError(f"A routing stands between the backbone and an adapter, but {name!r} has none. Leave it out.")
        profile.routing.check(backbone)
    with torch.no_grad():
        probe = profile.transform(backbone, backbone.chat_ids("?"))
    if probe.soft_KH is not None and not torch.isfinite(probe.soft_KH).all():
        raise DamagedAdapter(
            f"Weights must be finite, but the soft thoughts of {name!r} hold NaN or infinity. The fit that made them "
            "diverged: fit again with a lower learning rate."
        )
