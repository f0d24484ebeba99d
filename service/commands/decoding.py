"""`graftline decoding`: the backbone under a decoding policy, as a directory that can be published."""

from __future__ import annotations

import json
from pathlib import Path


def decoding(recipe_file: Path, policy_file: Path, out: Path, as_json: bool) -> None:
    from adapters.backbone import Backbone
    from engine.torch_engine import TorchEngine
    from tuning.policy_release import read_policy, write_policy
    from tuning.recipe import Recipe

    recipe, policy = Recipe.load(recipe_file), read_policy(policy_file)
    backbone = Backbone.load(recipe.backbone)
    write_policy(recipe, policy, TorchEngine(backbone), backbone, out)
    if as_json:
        print(json.dumps({"directory": str(out), "policy": policy.model_dump(mode="json")}))
    else:
        others = {"branches": policy.branches, "tracing": policy.tracing}
        on = [*policy.interventions, *(name for name, part in others.items() if part is not None)]
        print(f"wrote {out} ({', '.join(on) or 'sampling'}); next: graftline publish {out}")
