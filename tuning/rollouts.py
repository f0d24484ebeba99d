"""What a model writes for a fit: through the engine, in shared batches, and kept as it is written.

A fit that was killed asks again and gets what it had; only what was being written is written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from adapters.adapter import Adapter
from adapters.backbone import Backbone, cache_directory
from adapters.lora import LoRA
from adapters.softcot import SoftCoT
from engine.engine import Completion, Engine, GenerationRequest
from engine.twin import Precision
from tuning.journal import Journal

if TYPE_CHECKING:
    from engine.profile import Profile

WRITER = "writer"  # the profile of the adapters that write
MAX_ROWS = 64
CHUNK = 2 * MAX_ROWS  # requests that are written and kept together: what a kill costs, and how long there is no sign of life
_COMPLETION = TypeAdapter(Completion)
_WHEN = ("priority", "deadline", "cache_salt")  # decide when a request runs, not what is written


@dataclass
class Rollouts:
    """`num_generated` counts the tokens that this process wrote; what was kept before costs nothing.

    `num_used` counts the tokens of all that was asked for, kept before or not: the same every time.
    """

    engine: Engine
    journal: Journal | None = None
    num_generated: int = 0
    num_used: int = 0
    on_chunk: Callable[[], None] | None = None  # called when some requests are written, of what may take minutes in all
    _kept: dict[str, Completion] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.journal:
            self._kept = {entry["key"]: _COMPLETION.validate_python(entry["written"]) for entry in self.journal.entries()}

    def write(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """In the order of the requests. One that samples needs a seed of its own: its place in a batch must not matter."""
        unseeded = [request for request in requests if request.temperature and request.seed is None]
        if unseeded:
            raise ValueError(
                f"A rollout that samples has a seed, but {len(unseeded)} of {len(requests)} have none. Give each one."
            )
        keys = [_key(request) for request in requests]
        left = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._kept}
        asked = list(left.items())
        for start in range(0, len(asked), CHUNK):
            chunk = asked[start : start + CHUNK]
            for (key, _), written in zip(chunk, self.engine.complete([request for _, request in chunk]), strict=True):
                self.num_generated += len(written.token_ids)
                self._kept[key] = written
                if self.journal:
                    self.journal.append({"key": key, "written": asdict(replace(written, journey=None))})
            if self.on_chunk:
                self.on_chunk()
        self.num_used += sum(len(self._kept[key].token_ids) for key in keys)
        return [self._kept[key] for key in keys]

    def profile(self, name: str) -> Profile:
        return self.engine.profile(name)

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Decoding policies write through it as through an engine."""
        return self.write(requests)


@contextmanager
def rollouts(
    backbone: Backbone,
    adapters: Sequence[Adapter] = (),
    directory: Path | None = None,
    on_chunk: Callable[[], None] | None = None,
    precision: Precision | None = None,
) -> Iterator[Rollouts]:
    """An engine over the same backbone, without a second copy of it; the adapters, where given, are loaded as WRITER.

    The journal in the directory is of these very adapters as they are now: pass none for one that is being trained.
    """
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine

    engine = TorchEngine(backbone, max_rows=MAX_ROWS, precision=precision)
    try:
        if adapters:
            engine.load(WRITER, Profile(tuple(adapters)))
        yield Rollouts(engine, Journal(directory / "rollouts.jsonl") if directory else None, on_chunk=on_chunk)
    finally:
        engine.close()


def room_for(backbone: Backbone, prompt_ids: Sequence[int], most: int) -> int:
    """How many tokens can be written after the prompt, at most so many; 0 when it fills the context."""
    return max(0, min(most, backbone.context_length - len(prompt_ids)))


def has_begun(backbone: Backbone, adapters: Sequence[Adapter]) -> bool:
    """Whether one goes on from an earlier fit: they then write for their own, where new ones are as good as the backbone."""
    return any(_has_begun(backbone, adapter) for adapter in adapters)


def _has_begun(backbone: Backbone, adapter: Adapter) -> bool:
    if isinstance(adapter, LoRA):
        with adapter.attach(backbone):
            return any(bool(tensor.any()) for key, tensor in adapter.tensors().items() if "lora_B" in key)
    return isinstance(adapter, SoftCoT) and adapter.digest() != SoftCoT(adapter.spec).digest()


def own_words(backbone: Backbone, purpose: str) -> Path:
    """Where what the backbone alone wrote is kept for whoever asks for it again: another trial, another study."""
    numbers = backbone.numbers.removeprefix("torch.").replace("/", "-")
    return cache_directory() / "written" / f"{backbone.fingerprint[:24]}-{numbers}" / purpose


def _key(request: GenerationRequest) -> str:
    """Of what decides what is written; a field that is left as it is usually is no part of it, so that new ones change no key."""
    told = asdict(request)
    names = [one.name for one in fields(request) if one.name not in _WHEN and told[one.name] != one.default]
    policy = None if request.policy is None else request.policy.model_dump(mode="json")
    return hashlib.sha256(
        json.dumps({**{name: told[name] for name in names}, "policy": policy}, sort_keys=True).encode()
    ).hexdigest()
