"""A feature's steering adapter as a release: for a domain, under a bound of its KL, with what was compared beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from adapters.backbone import Backbone
from adapters.steering import Steering
from adapters.whole_file import whole_directory, write_whole
from engine.profile import Profile
from evaluation.task import Example
from registry.manifest import Manifest, file_digest
from tuning.manifest import complete
from tuning.recipe import Recipe

COMPARED = "feature.json"


def write_feature(
    directory: Path,
    recipe: Recipe,
    backbone: Backbone,
    steering: Steering,
    eps: float,
    saved: Path,
    compared: Mapping[str, JsonValue],
    read: Sequence[Example],
) -> Manifest:
    """Writes a directory that can be published; whole or not at all.

    `eps`: the KL to the backbone in nats a token that the gate holds it to. `saved` is the autoencoder, `read` what its states
    were harvested from: no item of the gate may repeat it.
    """
    made: dict[str, JsonValue] = {"how": "a feature of a sparse autoencoder", "eps": eps}
    made |= {key: compared[key] for key in ("feature", "form", "strength", "layer")}
    made["sae_sha256"] = file_digest(saved / "sae_weights.safetensors")
    with whole_directory(directory) as part:
        write_whole(part / COMPARED, json.dumps(compared, indent=2) + "\n")
        return complete(part, recipe, backbone, Profile((steering,)), 1.0, read, made)
