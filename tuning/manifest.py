"""Completes a fitted adapter's directory into one that can be published: what it is, from which data, under which packages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from pydantic import JsonValue

from adapters.backbone import Backbone
from adapters.files import kind_of
from engine.profile import Profile
from evaluation.overlap import Fingerprints
from evaluation.task import Example
from evaluation.tasks import task_named
from evaluation.tasks.definition import definition
from registry.manifest import BackboneIdentity, Manifest, ProfileDescription, TrainingHashes, write_manifest
from tuning.machine import this_machine
from tuning.plan import data_digest
from tuning.recipe import Recipe

# What nothing was fitted by.
_OF_FITS = {"adapter", "method", "fit", "search", "ranges", "start", "study"}


def complete(
    directory: Path,
    recipe: Recipe,
    backbone: Backbone,
    profile: Profile,
    scale: float,
    examples: Sequence[Example],
    made: Mapping[str, JsonValue] | None = None,
) -> Manifest:
    """Saves the profile and writes its manifest; the directory is then ready for `graftline publish`.

    `made` tells how an adapter was made that no recipe fits; `examples` are then what it was read from. Of such a one, and of a
    profile without adapters, the manifest keeps of the recipe what the gate reads.
    """
    profile.save(directory)
    is_fitted = bool(profile.adapters) and made is None
    return write_manifest(
        directory,
        backbone=BackboneIdentity(
            name=recipe.backbone,
            fingerprint=backbone.fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
            format=recipe.backbone_format if is_fitted else backbone.format,
        ),
        profile=ProfileDescription(
            adapters=tuple(map(kind_of, profile.adapters)), scale=scale, decoding=profile.policy.model_dump(mode="json")
        ),
        recipe=recipe.model_dump(mode="json", exclude=None if is_fitted else _OF_FITS),
        task={
            "name": recipe.domain,
            "protected": list(recipe.protected),
            "definitions": {name: definition(task_named(name)) for name in (recipe.domain, *recipe.protected)},
        },
        data_digests={"train": data_digest(examples)} if examples else {},
        lock_digest=installed_digest(),
        seeds=_seeds(recipe) if is_fitted else {},
        training=hashes_of(examples, Path(recipe.adapter.warm_start) if is_fitted and recipe.adapter.warm_start else None),
        derived={} if is_fitted else made or {"how": "a decoding policy alone"},
        fitted_on=this_machine(backbone.device) if is_fitted else None,
    )


def hashes_of(examples: Sequence[Example], begun_from: Path | None = None) -> TrainingHashes:
    """What is stored of the examples that something was fitted on, those of the release that it was begun from among them."""
    fingerprints = Fingerprints.of(examples)
    if begun_from is not None:
        fingerprints = fingerprints.joined(fingerprints_of(TrainingHashes.read(begun_from)))
    return TrainingHashes(frozenset(map(_hex, fingerprints.rows)), frozenset(map(_hex, fingerprints.ngrams)))


def fingerprints_of(hashes: TrainingHashes) -> Fingerprints:
    """What `complete` stored, ready for an overlap check."""
    rows = frozenset(int(row, 16) for row in hashes.rows)
    return Fingerprints(rows, frozenset(int(ngram, 16) for ngram in hashes.ngrams), len(rows))


def installed_digest() -> str:
    """SHA-256 over the names and versions of everything that is installed."""
    names = sorted({f"{found.metadata['Name']}=={found.version}" for found in distributions()})
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _seeds(recipe: Recipe) -> dict[str, int]:
    return {"method": recipe.method.seed, "lora": recipe.adapter.lora.seed, "softcot": recipe.adapter.softcot.seed}


def _hex(number: int) -> str:
    return f"{number & (2**64 - 1):016x}"
