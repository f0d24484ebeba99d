"""The adapters of one profile in one directory: LoRA at its root in PEFT's layout, other kinds in folders beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from adapters.adapter import Adapter
from adapters.errors import DamagedAdapter, RefusedAdapter
from adapters.lora import CONFIG, LoRA, LoRASpec
from adapters.softcot import SoftCoT, SoftCoTSpec
from adapters.steering import Steering, SteeringSpec
from adapters.steering_files import is_steering

ADAPTERS: dict[str, type[LoRA] | type[SoftCoT] | type[Steering]] = {"lora": LoRA, "softcot": SoftCoT, "steering": Steering}
SPECS: dict[str, type[LoRASpec] | type[SoftCoTSpec] | type[SteeringSpec]] = {
    "lora": LoRASpec,
    "softcot": SoftCoTSpec,
    "steering": SteeringSpec,
}


def new_adapter(spec: LoRASpec | SoftCoTSpec | SteeringSpec) -> Adapter:
    match spec:
        case LoRASpec():
            return LoRA(spec)
        case SoftCoTSpec():
            return SoftCoT(spec)
        case SteeringSpec():
            return Steering(spec)


def save_adapters(adapters: Sequence[Adapter], directory: Path) -> None:
    """At most one adapter a kind. The directory must be empty or new."""
    kinds = [kind_of(adapter) for adapter in adapters]
    if len(set(kinds)) < len(kinds):
        raise RefusedAdapter(f"A profile has at most one adapter of a kind, but got {kinds}.")
    directory.mkdir(parents=True, exist_ok=True)
    for kind, adapter in zip(kinds, adapters, strict=True):
        place = _place(directory, kind)
        place.mkdir(exist_ok=True)
        adapter.save(place)


def load_adapters(directory: Path, kinds: Collection[str] | None = None) -> tuple[Adapter, ...]:
    """The adapters in the order in which they are applied: LoRA, soft thoughts, steering.

    `kinds` are those that must be there, none being a possibility; None: one or more, of whatever kind.
    """
    if not directory.is_dir():
        raise DamagedAdapter(f"An adapter is a directory, but {directory} is none. Check the path.")
    found: list[Adapter] = []
    for kind, adapter in ADAPTERS.items():
        config = _place(directory, kind) / CONFIG
        if config.is_file() and _kind(config) == kind:
            found.append(adapter.load(config.parent))
    if not found and kinds is None:
        raise DamagedAdapter(f"{directory} holds no {CONFIG} of a known kind ({', '.join(ADAPTERS)}). Check the path.")
    if missing := sorted(set(kinds or ()) - set(map(kind_of, found))):
        raise DamagedAdapter(f"{directory} was saved with {', '.join(missing)}, which is not there. Save or download it again.")
    return tuple(found)


def kind_of(adapter: Adapter) -> str:
    return next(kind for kind, cls in ADAPTERS.items() if isinstance(adapter, cls))


def _place(directory: Path, kind: str) -> Path:
    return directory if kind == "lora" else directory / kind


def _kind(config: Path) -> str:
    try:
        peft_type = str(json.loads(config.read_text()).get("peft_type", "")).upper()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise DamagedAdapter(f"{config} is not a JSON object ({error}). Save or download the adapter again.") from error
    return "steering" if is_steering(config, peft_type) else peft_type.lower()
