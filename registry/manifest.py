"""The manifest: everything that a release is, in one frozen value beside its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from adapters.whole_file import is_part, write_whole
from registry.errors import DamagedRelease

MANIFEST, CARD, TRAINING = "manifest.json", "README.md", "training_hashes.json"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneIdentity(_Value):
    name: str
    fingerprint: str  # SHA-256 over the backbone's stored sources
    dtype: str  # what it computed in while the adapter was fitted
    format: Literal["full", "nf4"] = "full"  # what its weights were held in

    @model_serializer(mode="wrap")
    def _as_before(self, told: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """A manifest without another format is the one that it was before there were formats, and so is its digest."""
        values: dict[str, JsonValue] = told(self)
        return {name: value for name, value in values.items() if (name, value) != ("format", "full")}

    @property
    def computes_in(self) -> str:
        return self.dtype if self.format == "full" else f"{self.dtype}, weights in {self.format}"


class ProfileDescription(_Value):
    """What a name serves: the adapters, how strongly they act, and how tokens are chosen."""

    adapters: tuple[str, ...]  # kinds, none for a policy alone: a LoRA at the root, any other in a folder of its name
    scale: float = 1.0
    decoding: dict[str, JsonValue] = Field(default_factory=dict)


class Machine(_Value):
    """What decides the last bits of a fit beside recipe and data."""

    cpu: str  # the processor's name
    instructions: str  # what PyTorch computes with on it: AVX512, AVX2, ...
    device: str  # cpu, or the accelerator's name
    threads: int
    packages: dict[str, str]  # versions of what a fit runs on, Python among them


class Manifest(_Value):
    """`files` names every other file of the directory with its SHA-256."""

    format_version: Literal[1] = 1
    backbone: BackboneIdentity
    profile: ProfileDescription
    recipe: dict[str, JsonValue]
    task: dict[str, JsonValue]  # the task's definition: source, columns, split rule
    data_digests: dict[str, str]
    lock_digest: str  # SHA-256 of the pinned packages
    seeds: dict[str, int]
    training_hashes: str  # SHA-256 of training_hashes.json
    derived: dict[str, JsonValue] = Field(default_factory=dict)  # how it was made without a fit; empty where it was fitted
    fitted_on: Machine | None = None  # None: it was made without a fit, or before this was recorded
    files: dict[str, str] = Field(default_factory=dict)

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class TrainingHashes:
    """Hashes of the training rows and of their 13-grams: enough to find an overlap, too little to read the data."""

    rows: frozenset[str]
    ngrams: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> TrainingHashes:
        stored = json.loads((directory / TRAINING).read_text())
        return cls(frozenset(stored["rows"]), frozenset(stored["ngrams_13"]))

    def write(self, directory: Path) -> str:
        """The SHA-256 of the written file."""
        file = directory / TRAINING
        write_whole(file, json.dumps({"rows": sorted(self.rows), "ngrams_13": sorted(self.ngrams)}))
        return file_digest(file)


def write_manifest(
    directory: Path,
    *,
    backbone: BackboneIdentity,
    profile: ProfileDescription,
    recipe: Mapping[str, JsonValue],
    task: Mapping[str, JsonValue],
    data_digests: Mapping[str, str],
    lock_digest: str,
    seeds: Mapping[str, int],
    training: TrainingHashes,
    derived: Mapping[str, JsonValue] | None = None,
    fitted_on: Machine | None = None,
) -> Manifest:
    """Completes a directory of adapter files: training hashes, model card, and last the manifest over all of them."""
    manifest = Manifest(
        backbone=backbone,
        profile=profile,
        recipe=dict(recipe),
        task=dict(task),
        data_digests=dict(data_digests),
        lock_digest=lock_digest,
        seeds=dict(seeds),
        training_hashes=training.write(directory),
        derived=dict(derived or {}),
        fitted_on=fitted_on,
    )
    write_whole(directory / CARD, model_card(manifest))
    manifest = manifest.model_copy(update={"files": {name: file_digest(directory / name) for name in _names(directory)}})
    write_whole(directory / MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    file = directory / MANIFEST
    if not file.is_file():
        raise DamagedRelease(f"A release directory holds a {MANIFEST}, but {directory} has none. Fit the recipe again.")
    try:
        return Manifest.model_validate_json(file.read_text())
    except ValidationError as error:
        raise DamagedRelease(f"{file} must be a release manifest, but {_first_fault(error)}. Restore it or fit again.") from error
    except UnicodeDecodeError as error:
        raise DamagedRelease(
            f"{file} must be a release manifest, but it is no text: {error}. Restore it or fit again."
        ) from error


def _first_fault(error: ValidationError) -> str:
    """In one clause: where, what, and how many more there are. The value is left out, since it may be the whole file."""
    faults = error.errors(include_url=False)
    place = ".".join(str(part) for part in faults[0]["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return (f"its {place!r} breaks a rule: " if place else "") + faults[0]["msg"].rstrip(".") + more


def verify(directory: Path) -> Manifest:
    """The manifest, once every file it names is there unchanged and no other file is."""
    manifest = read_manifest(directory)
    present = set(_names(directory))
    for name, expected in manifest.files.items():
        if name not in present:
            raise DamagedRelease(f"Every file of a release must be there, but {name} is missing in {directory}. {_WAY_OUT}")
        found = file_digest(directory / name)
        if found != expected:
            raise DamagedRelease(
                f"Every file of a release must match its SHA-256, but {name} in {directory} has {found[:12]}, "
                f"not {expected[:12]}: it is damaged. {_WAY_OUT}"
            )
    if added := sorted(present - set(manifest.files)):
        raise DamagedRelease(f"A release holds only what its manifest names, but {directory} also has {added[0]}. Remove it.")
    if manifest.training_hashes != manifest.files.get(TRAINING):
        raise DamagedRelease(f"The manifest in {directory} must name the digest of its {TRAINING}, but differs. {_WAY_OUT}")
    return manifest


_WAY_OUT = "Publish it again from an intact copy, or fit the recipe again."


def verify_tensors(directory: Path) -> None:
    """Every safetensors file has a sound header and finite values."""
    from safetensors import SafetensorError, deserialize

    for file in sorted(directory.rglob("*.safetensors")):
        try:
            tensors = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedRelease(f"{file} must be a safetensors file, but it is damaged ({error}). {_WAY_OUT}") from error
        for name, tensor in tensors:
            if not _finite(str(tensor["dtype"]), bytes(tensor["data"])):
                raise DamagedRelease(
                    f"Adapter weights must be finite, but {name} in {file} holds NaN or infinity. "
                    "Fit the recipe again, with a lower learning rate if the loss diverged."
                )


def _finite(dtype: str, stored: bytes) -> bool:
    """Whole numbers are finite; bfloat16, which numpy lacks, is not finite where its exponent bits are all set."""
    import numpy as np

    floats = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if dtype == "BF16":
        return not bool(((np.frombuffer(stored, "<u2") & 0x7F80) == 0x7F80).any())
    return dtype not in floats or bool(np.isfinite(np.frombuffer(stored, floats[dtype])).all())


def file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of all files but the manifest, which a plain adapter directory has not."""
    found = [(name, file_digest(directory / name)) for name in _names(directory)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _names(directory: Path) -> Iterable[str]:
    found = (file for file in sorted(directory.rglob("*")) if file.is_file() and not is_part(file))
    names = (file.relative_to(directory).as_posix() for file in found)
    return [name for name in names if name != MANIFEST]


def model_card(manifest: Manifest) -> str:
    """What a reader of the registry sees first."""
    kinds = ", ".join(manifest.profile.adapters)
    title = f"An adapter ({kinds})" if kinds else "A decoding policy"
    rows = [
        (
            "Backbone",
            f"{manifest.backbone.name} (fingerprint `{manifest.backbone.fingerprint[:16]}`, {manifest.backbone.computes_in})",
        ),
        ("Adapters", f"{kinds} at scale {manifest.profile.scale:g}" if kinds else "none"),
        ("Decoding", json.dumps(manifest.profile.decoding) if manifest.profile.decoding else "greedy, nothing added"),
        ("Task", str(manifest.task.get("name", "unnamed"))),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items()) or "none"),
        ("Data", ", ".join(f"{name} `{digest[:16]}`" for name, digest in manifest.data_digests.items()) or "none"),
        ("Packages", f"`{manifest.lock_digest[:16]}`"),
        *([("Fitted on", _fitted_on(manifest.fitted_on))] if manifest.fitted_on else []),
        *([("Made as", f"`{json.dumps(manifest.derived)}`")] if manifest.derived else []),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    recipe = json.dumps(manifest.recipe, indent=2, sort_keys=True)
    return (
        f"# {title} for {manifest.backbone.name}\n\nIt runs only on the backbone with this fingerprint. "
        f"The gate's verdict is in the registry, beside the version.\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Recipe\n\n```json\n{recipe}\n```\n"
    )


def _fitted_on(machine: Machine) -> str:
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
    return (
        f"{machine.device}, {machine.cpu} ({machine.instructions}), {threads}, torch {machine.packages.get('torch', 'unknown')}"
    )
