"""Releases for tests: small random adapters with whole manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from gated_names import NAME
from pydantic import JsonValue
from safetensors.torch import save_file

from adapters.adapter import Adapter
from adapters.backbone import Backbone, Format
from adapters.files import kind_of
from adapters.lora import LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from engine.profile import DecodingPolicy, Profile
from registry.ledger import Ledger
from registry.manifest import BackboneIdentity, Manifest, ProfileDescription, TrainingHashes, write_manifest
from registry.tracking import Tracking


def random_lora(backbone: Backbone, seed: int, size: float = 0.3) -> LoRA:
    """A LoRA that changes what the backbone writes."""
    lora = LoRA(LoRASpec(rank=4, alpha=8, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with lora.attach(backbone), torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return lora


def random_thoughts(backbone: Backbone, seed: int) -> SoftCoT:
    softcot = SoftCoT(SoftCoTSpec(num_thoughts=3, assistant_layers=1, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with softcot.attach(backbone), torch.no_grad():
        for parameter in softcot.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return softcot


def write_release(
    directory: Path,
    backbone: Backbone,
    *adapters: Adapter,
    fingerprint: str | None = None,
    policy: DecodingPolicy | None = None,
    domain: str | None = None,
    protected: Sequence[str] = (),
) -> Manifest:
    """The files of a release; `fingerprint` claims another backbone."""
    Profile(adapters, policy or DecodingPolicy()).save(directory)
    return complete(directory, backbone, fingerprint, domain, protected, tuple(map(kind_of, adapters)))


def complete(
    directory: Path,
    backbone: Backbone,
    fingerprint: str | None = None,
    domain: str | None = None,
    protected: Sequence[str] = (),
    kinds: tuple[str, ...] = ("lora",),
) -> Manifest:
    """Writes manifest and card over the adapter files that are there."""
    nothing = TrainingHashes(frozenset(), frozenset())
    guarding = {"protected": list(protected)} if protected else {}
    return write_manifest(
        directory,
        backbone=BackboneIdentity(name=backbone.name, fingerprint=fingerprint or backbone.fingerprint, dtype="float32"),
        profile=ProfileDescription(adapters=kinds),
        recipe={"name": "small", **({"domain": domain} if domain else {}), **guarding},
        task={"name": "small"},
        data_digests={},
        lock_digest="0" * 64,
        seeds={"fit": 0},
        training=nothing,
    )


def promote(tracking: Tracking, name: str, version: int) -> None:
    """Past the gate, which has tests of its own; the ledger keeps the reason."""
    Ledger(tracking, name).promote(version, None, override=True, reason="a test of what comes after the gate")


def write_directory(
    folder: Path, backbone: str = "tiny", recipe: Mapping[str, JsonValue] | None = None, format: Format = "full"
) -> Path:
    """What a registry takes as a release, without a backbone behind it: one matrix of ones and its manifest."""
    folder.mkdir(parents=True)
    save_file({"lora_A": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    write_manifest(
        folder,
        backbone=BackboneIdentity(name=backbone, fingerprint="f" * 64, dtype="float32", format=format),
        profile=ProfileDescription(adapters=("lora",)),
        recipe=recipe or {"name": NAME},
        task={},
        data_digests={},
        lock_digest="l" * 64,
        seeds={},
        training=TrainingHashes(frozenset(), frozenset()),
    )
    return folder
