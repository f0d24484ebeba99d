"""A decoding policy as a release of its own: the backbone, decoded otherwise, with no weights beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from adapters.backbone import Backbone
from adapters.whole_file import whole_directory
from engine.engine import Engine
from engine.profile import DecodingPolicy, Profile
from registry.manifest import Manifest
from tuning.errors import BadRecipe
from tuning.faults import in_one_sentence
from tuning.manifest import complete
from tuning.recipe import Recipe

_TRIED = "a policy that is tried"


def read_policy(file: Path) -> DecodingPolicy:
    """From TOML, with the fields of a release's `profile.json`; what is left out is off."""
    try:
        return DecodingPolicy(**tomllib.loads(file.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRecipe(f"A decoding policy is a TOML file, but {file} cannot be read: {error}.") from error
    except ValidationError as error:
        raise BadRecipe(f"{file}: {in_one_sentence(error, of='decoding policy')}") from error


def write_policy(recipe: Recipe, policy: DecodingPolicy, engine: Engine, backbone: Backbone, directory: Path) -> Manifest:
    """Writes a directory that can be published, which must be new; whole or not at all.

    CannotRun for a policy that the engine cannot run. Of the recipe the gate reads name, domain, protected families and settings.
    """
    if directory.exists():
        raise BadRecipe(f"A new release goes into a directory of its own, but {directory} is there already. Name another.")
    if policy == DecodingPolicy():
        raise BadRecipe("A policy changes how tokens are chosen, but this one is greedy decoding. Switch a part of it on.")
    profile = Profile(policy=policy)
    engine.load(_TRIED, profile)
    engine.unload(_TRIED)
    with whole_directory(directory) as part:
        return complete(part, recipe, backbone, profile, 1.0, ())
