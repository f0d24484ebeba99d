"""Leases: a loaded release, and who keeps it loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.names import ReleaseName

if TYPE_CHECKING:
    from adapters.adapter_router import AdapterRouter
    from service.canary import Draw


def served_id(name: str) -> str:
    """What clients call the backbone; a path of the server stays on the server."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


@dataclass(frozen=True)
class Served:
    """What one request runs on. The engine's `profile` name holds the digest, so it never changes its meaning."""

    id: str  # NAME@VERSION, or the backbone's name
    profile: str | None  # None: the backbone
    digest: str
    prompt_overhead: int = 0  # tokens that the release adds to every prompt (soft thoughts and their markers)
    router: AdapterRouter | None = None  # set: the release only chooses what answers


@dataclass
class Slot:
    served: Served
    uses: int = 0
    last_use: float = 0.0
    is_kept: bool = False  # asked for by version or alias: stays until room is needed


@dataclass(eq=False)
class Want:
    """A request that waits for a release to be loaded."""

    release: ReleaseName | None = None
    is_over: bool = False


class Lease:
    """Keeps a release loaded while a request runs on it. `draw` is the side of a canary that the request was drawn for."""

    def __init__(self, slot: Slot, give_back: Callable[[Slot], None]) -> None:
        self.served = slot.served
        self.draw: Draw | None = None
        self._slot: Slot | None = slot
        self._give_back = give_back

    def hand_over(self, other: Lease) -> None:
        """From now on this keeps what the other kept, and nothing else; the other is done with."""
        self.release()
        self.served, self._slot = other.served, other._slot
        other._slot = None

    def release(self) -> None:
        """May be called again."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._give_back(slot)
