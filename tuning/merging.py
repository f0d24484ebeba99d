"""Releases made of releases: LoRA adapters merged into one, or one without its intruder dimensions, ready to be published.

What comes out is a directory like that of a fit, with a manifest: it is published, gated and promoted like any other. It carries
the training hashes of all that it was made of, so that the gate finds an overlap with any of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from adapters.backbone import Backbone
from adapters.errors import RefusedAdapter
from adapters.lora import LoRA
from adapters.merge import IntruderSpec, MergeSpec, merged, without_intruders
from adapters.whole_file import whole_directory
from engine.profile import DecodingPolicy, Profile
from registry.errors import BackboneMismatch
from registry.manifest import MANIFEST, Manifest, ProfileDescription, TrainingHashes, file_digest, write_manifest
from tuning.errors import BadRecipe
from tuning.gating import Subject
from tuning.manifest import installed_digest
from tuning.recipe import Recipe


@dataclass(frozen=True)
class Parents:
    """What is made into one; the first gives the domain, the policy of the gate and, unless told otherwise, the name."""

    subjects: Sequence[Subject]
    loras: Sequence[LoRA]
    policy: DecodingPolicy

    @classmethod
    def of(cls, subjects: Sequence[Subject], backbone: Backbone) -> Parents:
        """Raises for what is no LoRA alone, of another backbone, or decoded in another way than the first."""
        loras, policies = [], []
        for subject in subjects:
            fitted_on = subject.manifest.backbone
            if fitted_on.fingerprint != backbone.fingerprint:
                raise BackboneMismatch(
                    f"Adapters are joined on the backbone that they were all fitted on, but {subject.name} was fitted on "
                    f"{fitted_on.fingerprint[:12]} and this one is {backbone.fingerprint[:12]}. Leave it out."
                )
            profile = Profile.load(subject.directory)
            if len(profile.adapters) != 1 or not isinstance(profile.adapters[0], LoRA):
                kinds = ", ".join(subject.manifest.profile.adapters) or "no adapter"
                raise RefusedAdapter(
                    f"Only a LoRA by itself can be joined, but {subject.name} has {kinds}: "
                    "soft thoughts and steering vectors have no sum. Leave it out."
                )
            loras.append(profile.adapters[0])
            policies.append(profile.policy)
        if any(policy != policies[0] for policy in policies):
            raise RefusedAdapter(
                f"What is joined is decoded in one way, but {subjects[0].name} has {policies[0]!r} and another differs. "
                "Fit them again with one policy."
            )
        return cls(subjects, loras, policies[0])


def merge(parents: Parents, backbone: Backbone, spec: MergeSpec, directory: Path, name: str | None = None) -> Manifest:
    """Writes the merged adapter into the directory, which must be new; whole or not at all."""
    lora = merged(backbone, parents.loras, spec)
    return _write(parents, backbone, lora, directory, name, {"how": "merge", **spec.model_dump(mode="json")})


def reduce_intruders(
    parents: Parents, backbone: Backbone, spec: IntruderSpec, directory: Path, name: str | None = None
) -> Manifest | None:
    """The same for one adapter without its intruder dimensions. `derived["intruders"]` counts them, by module.

    None, and nothing is written, where it has none.
    """
    if len(parents.loras) != 1:
        raise RefusedAdapter(
            f"Intruder dimensions are those of one adapter, but got {len(parents.loras)}. Merge them first, or do one by one."
        )
    found = without_intruders(backbone, parents.loras[0], spec)
    if not found.intruders:
        return None
    intruders: dict[str, JsonValue] = dict(found.intruders)
    told: dict[str, JsonValue] = {"how": "reduce-intruders", **spec.model_dump(mode="json"), "intruders": intruders}
    return _write(parents, backbone, found.lora, directory, name, told)


def _write(
    parents: Parents, backbone: Backbone, lora: LoRA, directory: Path, name: str | None, told: dict[str, JsonValue]
) -> Manifest:
    if directory.exists():
        raise BadRecipe(f"A new adapter goes into a directory of its own, but {directory} is there already. Name another.")
    first, manifests = parents.subjects[0].manifest, [subject.manifest for subject in parents.subjects]
    recipe = _recipe(parents, lora, name)
    made_of: list[JsonValue] = [
        {"name": subject.name, "manifest_sha256": file_digest(subject.directory / MANIFEST)} for subject in parents.subjects
    ]
    definitions: dict[str, JsonValue] = {}
    for manifest in manifests:
        known = manifest.task.get("definitions")
        definitions |= known if isinstance(known, dict) else {}
    with whole_directory(directory) as part:
        Profile((lora,), parents.policy).save(part)
        return write_manifest(
            part,
            backbone=first.backbone,
            profile=ProfileDescription(adapters=("lora",), scale=1.0, decoding=parents.policy.model_dump()),
            recipe=recipe.model_dump(mode="json"),
            task={"name": recipe.domain, "protected": list(recipe.protected), "definitions": definitions},
            data_digests={
                f"{subject.name}/{split}": digest
                for subject in parents.subjects
                for split, digest in subject.manifest.data_digests.items()
            },
            lock_digest=installed_digest(),
            seeds=first.seeds,
            training=_all_hashes(parents),
            derived={**told, "of": made_of},
        )


def _recipe(parents: Parents, lora: LoRA, name: str | None) -> Recipe:
    """What the gate reads: the first one's domain and settings, and all that any of them protects."""
    recipes = [subject.recipe for subject in parents.subjects]
    protected = [family for recipe in recipes for family in recipe.protected if family != recipes[0].domain]
    return recipes[0].with_values(
        {
            "name": name or recipes[0].name,
            "protected": tuple(dict.fromkeys(protected)),
            "adapter.kind": "lora",
            "adapter.lora": lora.spec.model_dump(),
        }
    )


def _all_hashes(parents: Parents) -> TrainingHashes:
    found = [TrainingHashes.read(subject.directory) for subject in parents.subjects]
    rows, ngrams = (hashes.rows for hashes in found), (hashes.ngrams for hashes in found)
    return TrainingHashes(frozenset[str]().union(*rows), frozenset[str]().union(*ngrams))
