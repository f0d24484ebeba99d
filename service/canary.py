"""Canaries while serving: whom a release answers, what is seen of it beside its champion, and taking its traffic away."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from registry.canary_chain import Canary, CanaryEntry, Trail
from registry.errors import CanaryMoved, NoCanary, RegistryError
from registry.names import ReleaseName
from service import meters
from service.audit import AuditLog, AuditUnavailable
from service.canary_counts import Ending, Monitor, ReleaseCounts
from service.canary_shadow import Again, Heard, Mirrored, Shadows
from service.errors import ApiError
from service.lease import Lease
from service.models import ServedModels
from service.writing import Writing

log = logging.getLogger("graftline.canary")
WATCH_S = 0.5
# A rollback that the ledger could not take is tried again after this time.
REWRITE_S = 10.0

EndByRollback = Callable[[Canary, str], None]
"""Blocks. Writes the rollback into the ledger, by compare-and-set."""


@dataclass(frozen=True)
class Draw:
    """Which side of a canary a request is on. `key` stands for its sticky key, and cannot be turned back into it."""

    canary: Canary
    key: bytes
    on_canary: bool


class Canaries:
    """Of one process. Used from the event loop only, but for what blocks."""

    def __init__(
        self,
        models: ServedModels,
        shadows: Shadows,
        roll_back: EndByRollback,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self.shadows, self._roll_back, self._clock = models, shadows, roll_back, clock
        self._monitors: dict[str, Monitor] = {}
        self._withdrawn: dict[str, tuple[int, str]] = {}  # by name: the canary's id, and why, before the ledger says so
        self._write_again_at: dict[str, float] = {}  # by name, where the ledger could not take a rollback
        self.counts = ReleaseCounts()

    def draw(self, model: str, key: str) -> Draw | None:
        """None where nothing is under way for the name, the model is a version or alias, or the release cannot answer."""
        canary = self._models.canary(model)
        if canary is None or self._refused(canary) is not None:
            return None
        digest = position_digest(canary.release, key)
        return Draw(canary, digest, position(digest) < canary.share)

    async def lease(self, model: str, key: str) -> Lease:
        """What answers this key's requests for the name. A whole request, with its choices and its stream, stays on it."""
        draw = self.draw(model, key)
        if draw is not None and draw.on_canary and not draw.canary.shadow:
            try:
                lease = await self._models.lease(str(draw.canary.release))
            except ApiError:  # it was unloaded this moment: nobody is refused for that
                return await self._models.lease(model)
        else:
            lease = await self._models.lease(model)
        lease.draw = draw
        return lease

    def follow(self, writing: Writing, again: Again) -> None:
        """Counts how it ends, for its release and for its side. A mirrored request is written `again` once it has ended."""
        draw = writing.lease.draw
        heard = None
        if draw is not None and draw.canary.shadow and draw.on_canary:
            heard = Heard.through(writing)

        def ended() -> None:
            ending = Ending.of(writing)
            self.counts.of(writing.model).add(ending)
            if draw is None:
                return
            monitor = self._monitor(draw.canary)
            if monitor is None:
                return
            if not draw.canary.shadow:
                monitor.note(draw.key, draw.on_canary, ending)
                return
            monitor.champion_counts.add(ending)
            if heard is not None and not ending.is_clients:
                self.shadows.offer(Mirrored(draw.canary, heard, again, lambda shadow: self._note_pair(draw, shadow, ending)))

        writing.at_end.append(ended)

    def _note_pair(self, draw: Draw, shadow: Ending, champion: Ending) -> None:
        monitor = self._monitor(draw.canary)
        if monitor is not None:
            monitor.note_pair(draw.key, shadow, champion)

    async def watch(self) -> None:
        """Looks, for ever, at what is under way where a look is due, and takes a release's traffic away that is found out."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self.look()
            except Exception:  # one look that fails must not be the last one
                log.exception("A look at the canaries failed; the next one is in %g s", WATCH_S)

    async def look(self) -> None:
        for name in list(self._monitors):
            canary = self._models.canary(name)
            if canary is None or canary.id != self._monitors[name].canary.id:
                del self._monitors[name]
                continue
            monitor = self._monitors[name]
            if name not in self._withdrawn and monitor.is_due:
                # In this thread: requests that end meanwhile must wait, and it takes some milliseconds.
                finding = monitor.look()
                if finding is not None:
                    self._withdraw(canary, monitor.reason(finding))
            await self._write_rollback(canary)
        for name, (ended, _) in list(self._withdrawn.items()):
            canary = self._models.canary(name)
            if canary is None or canary.id != ended:
                del self._withdrawn[name]
                self._write_again_at.pop(name, None)

    def _withdraw(self, canary: Canary, reason: str) -> None:
        """From this moment in this process; the ledger tells the others."""
        self._withdrawn[canary.release.name] = (canary.id, reason)
        meters.ROLLBACKS.labels(str(canary.release)).inc()
        log.error("ALERT: the %s %s gets no more requests: %s", canary.word, canary.release, reason)

    async def _write_rollback(self, canary: Canary) -> None:
        name = canary.release.name
        withdrawn = self._withdrawn.get(name)
        if withdrawn is None or withdrawn[0] != canary.id or self._clock() < self._write_again_at.get(name, -math.inf):
            return
        self._write_again_at[name] = self._clock() + REWRITE_S
        try:
            await asyncio.to_thread(self._roll_back, canary, withdrawn[1])
            log.error("%s was rolled back in the ledger: %s", canary.release, withdrawn[1])
        except (CanaryMoved, NoCanary) as error:
            log.warning("The %s %s had ended already: %s", canary.word, canary.release, error)
        except RegistryError as error:  # the next look tries again; until then it gets nothing here
            log.warning("The rollback of %s is not in the ledger yet: %s", canary.release, error)
            return
        del self._write_again_at[name]
        await asyncio.to_thread(self._models.refresh)

    def _monitor(self, canary: Canary) -> Monitor | None:
        """Of this canary; None when it ended while a request of it ran."""
        name, now = canary.release.name, self._models.canary(canary.release.name)
        if now is None or now.id != canary.id or now.share != canary.share:
            return None
        known = self._monitors.get(name)
        monitor = Monitor(canary) if known is None or known.canary.id != canary.id else known.with_share_of(canary)
        self._monitors[name] = monitor
        return monitor

    def _refused(self, canary: Canary) -> tuple[str, str] | None:
        """The state and the sentence of a canary that gets nothing here; None where it does."""
        withdrawn = self._withdrawn.get(canary.release.name)
        if withdrawn is not None and withdrawn[0] == canary.id:
            return "withdrawn", withdrawn[1]
        digest = self._models.digest_of(canary.release)
        if digest is None:
            reason = self._models.refusal(canary.release)
            return "not_loaded", reason or "It is not loaded yet."
        if canary.manifest not in (None, digest):
            return "not_loaded", f"Other files of it are loaded here ({digest[:12]}) than it was started with."
        return None

    def described(self, name: str) -> dict[str, JsonValue] | None:
        """The canary of the name, what was seen of it here, and how the last one ended; None before the first."""
        trail = self._models.trail(name)
        canary = self._models.canary(name)
        if canary is None:
            return _ended(name, trail)
        refused = self._refused(canary)
        monitor = self._monitors.get(name)
        seen = monitor if monitor is not None and monitor.canary.id == canary.id else Monitor(canary)
        return {
            "id": str(canary.release),
            "version": canary.release.version,
            "state": refused[0] if refused is not None else ("shadow" if canary.shadow else "serving"),
            "reason": None if refused is None else refused[1],
            "share": canary.share,
            "shadow": canary.shadow,
            "since": canary.since,
            "overridden": canary.overridden,
            "bounds": canary.bounds.model_dump(),
            "seen": seen.wire(),
            **({"mirror": self.shadows.wire(canary)} if canary.shadow else {}),
        }


def recorded_rollback(write: EndByRollback, audit: AuditLog) -> EndByRollback:
    """Into the ledger, and then the audit log. A log that cannot be written keeps no broken release in service."""

    def roll_back(canary: Canary, reason: str) -> None:
        write(canary, reason)
        try:
            with audit.by_service("canary.rollback", str(canary.release)) as act:
                act.detail["reason"] = reason
        except AuditUnavailable as error:
            log.error("The rollback of %s is in the ledger, but not in the audit log: %s", canary.release, error.message)

    return roll_back


def position_digest(release: ReleaseName, key: str) -> bytes:
    """Of a sticky key beside a release: another release draws other users."""
    return hashlib.sha256(f"{release}\n{key}".encode(errors="surrogatepass")).digest()[:16]


def position(digest: bytes) -> float:
    """In [0, 1): below the share is the canary's, so that whoever is in a share is in every larger one."""
    return int.from_bytes(digest[:6], "big") / 2**48


def sticky_key(key_id: str | None, user: str | None, request_id: str) -> str:
    """The API key and the user that it names; without a user the request itself, which is drawn on its own."""
    return f"user\n{key_id or ''}\n{user}" if user else f"request\n{request_id}"


def _ended(name: str, trail: Trail | None) -> dict[str, JsonValue] | None:
    entry: CanaryEntry | None = trail.canary.entry if trail is not None else None
    if entry is None:
        return None
    how = "superseded" if entry.is_under_way else entry.kind
    return {
        "id": str(ReleaseName(name, entry.adapter_version)),
        "version": entry.adapter_version,
        "state": "ended",
        "ended_by": how,
        "reason": None if entry.is_under_way else entry.reason or None,
        "since": entry.created,
    }
