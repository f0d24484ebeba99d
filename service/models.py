"""Names to releases: what a request's `model` means, kept in step with the ledger while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping

from adapters.backbone import Backbone
from adapters.errors import AdapterError
from engine.engine import Engine
from engine.errors import EngineError
from registry.canary_chain import Canary, Trail
from registry.errors import NoRoom, RegistryError, RegistryUnreachable
from registry.names import CHAMPION, ReleaseName
from service.catalogue import Catalogue
from service.errors import ApiError, without_paths
from service.lease import Lease, Served, Slot, Want, served_id
from service.loading import ReleaseLoader
from service.shortened import shortened
from service.unserved import REGISTRY_AWAY, RETRY_FAILED_S, RETRY_REFUSED_S, Readiness, Refusal, registry_away, unavailable

log = logging.getLogger("graftline.models")

MAX_ALIASES = 256
MAX_MODEL = 512  # characters of what a client may ask for
MIN_LOOK_S = 0.25  # between two looks at the ledger, however many hints come
_FORESEEN = (RegistryError, AdapterError, EngineError)
_VERSION = re.compile(r"v?([1-9][0-9]{0,17})")


class ServedModels:
    """Safe to use from the event loop and from threads; what blocks says so."""

    def __init__(
        self,
        engine: Engine,
        backbone: Backbone,
        catalogue: Catalogue,
        max_loaded: int = 16,
        clock: Callable[[], float] = time.monotonic,
        trails: Callable[[], Mapping[str, Trail]] = dict,
    ) -> None:
        self._catalogue, self._clock, self._max_loaded = catalogue, clock, max_loaded
        self._loader = ReleaseLoader(engine, backbone, catalogue)
        self._backbone = Slot(Served(served_id(backbone.name), None, backbone.fingerprint))
        self._state = threading.Lock()  # held for moments: names and counts
        self._looking = threading.Lock()  # held for a whole look: of two at a time the older could have the last word
        self._loading = threading.Lock()  # held while files are read and the engine changes
        self._known: dict[str, int | None] = {}  # the ledger's word
        self._champions: dict[str, ReleaseName] = {}  # what answers for NAME; the last good one
        self._aliases: dict[str, ReleaseName] = {}
        self._slots: dict[ReleaseName, Slot] = {}
        self._refused: dict[ReleaseName, Refusal] = {}
        self._named: dict[str, Slot] = {}  # adapters that were loaded under a name of their own
        self._leaving: list[Slot] = []  # of those, the ones that are unloaded once their last request is done
        self._wants: set[Want] = set()
        self._trails: dict[str, Trail] = {}  # what the ledger says of canaries
        self._read_trails = trails
        self._registry_problem: str | None = "not asked yet"
        self._hinted = asyncio.Event()

    @property
    def backbone_id(self) -> str:
        return self._backbone.served.id

    async def follow(self, poll_s: float) -> None:
        """Looks at the ledger for ever, and after a hint at once; two looks are never nearer than MIN_LOOK_S."""
        while True:
            self._hinted.clear()
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # one look that fails must not be the last one
                log.exception("A look at the ledger failed; the next one is in %g s", poll_s)
            await asyncio.sleep(min(poll_s, MIN_LOOK_S))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hinted.wait(), max(0.0, poll_s - MIN_LOOK_S))

    def look_soon(self) -> None:
        """A hint that the ledger may have moved: call it in the event loop."""
        self._hinted.set()

    def refresh(self) -> None:
        """Blocks. Loads what the ledger promoted, then lets its name point there, then drops what nobody uses."""
        with self._looking:
            self._refresh()

    def _refresh(self) -> None:
        try:
            known = dict(self._catalogue.champions())
            aliases = self._resolved_aliases()
        except RegistryUnreachable as error:
            self._note_registry(str(error))
            return
        except Exception as error:  # whatever a store raises, what is loaded stays served
            log.exception("The registry failed at a look-up")
            self._note_registry(f"The registry failed at a look-up ({type(error).__name__}: {error}).")
            return
        self._warn_of_hidden(known)
        for name, version in known.items():
            if version is not None:
                self._promote(ReleaseName(name, version))
        trails = dict(self._read_trails())
        for canary in _under_way(trails).values():
            if not self.holds(canary.release):
                self._load(canary.release, as_champion=False)
        with self._state:
            self._known, self._registry_problem, self._trails = known, None, trails
            self._aliases = aliases
            for name in set(self._champions) - {name for name, version in known.items() if version is not None}:
                del self._champions[name]
        self._drop_idle()

    def _warn_of_hidden(self, known: Mapping[str, int | None]) -> None:
        """Once: the registry of an earlier version may hold what no new model may be called."""
        if self.backbone_id in known and self.backbone_id not in self._known:
            log.warning(
                "A registered model has the backbone's name %r, which means the backbone: its releases are served as "
                "NAME@VERSION and NAME@champion alone. Publish them under another name.",
                self.backbone_id,
            )

    async def lease(self, model: str) -> Lease:
        """What the name means now, kept loaded until the lease is released. ApiError when it means nothing."""
        if len(model) > MAX_MODEL:
            raise self._unknown(model)
        slot = self._take(model)
        if slot is None:
            slot = await self._fetched(model)
        return Lease(slot, self._give_back)

    async def _fetched(self, model: str) -> Slot:
        """What is loaded for somebody who waits stays until he has it, however little may be kept."""
        want = Want()
        try:
            release = await asyncio.to_thread(self._fetch, model, want)
            slot = self._take(str(release))
        finally:
            with self._state:
                want.is_over = True
                self._wants.discard(want)
        if slot is None:
            raise self._unavailable(release)
        return slot

    def is_registered(self, name: str) -> bool:
        """Whether the registry knows the name, promoted or not."""
        with self._state:
            return name in self._known

    def canary(self, name: str) -> Canary | None:
        """What stands beside the name's champion by the ledger, loaded or not; None for a version, an alias or the backbone."""
        trail = None if name == self.backbone_id else self._trails.get(name)
        return None if trail is None else trail.under_way(name)

    def trail(self, name: str) -> Trail | None:
        return self._trails.get(name)

    def holds(self, release: ReleaseName) -> bool:
        return self.digest_of(release) is not None

    def digest_of(self, release: ReleaseName) -> str | None:
        """SHA-256 of the manifest of what is loaded; None where it is not."""
        with self._state:
            slot = self._slots.get(release)
            return None if slot is None else slot.served.digest

    def refusal(self, release: ReleaseName) -> str | None:
        """Why the release is not loaded, where it was tried."""
        with self._state:
            refusal = self._refused.get(release)
            return None if refusal is None else refusal.reason

    def ids(self) -> list[str]:
        """What may be asked for by name: the backbone and every name with a champion that is loaded."""
        with self._state:
            return self._ids()

    def _ids(self) -> list[str]:
        """Called with the state's lock held. A registered model may have the backbone's name, which then means the backbone."""
        return list(dict.fromkeys([self._backbone.served.id, *sorted(self._champions), *sorted(self._named)]))

    def named(self) -> list[str]:
        """The names of adapters that were loaded at run time."""
        with self._state:
            return sorted(self._named)

    def is_taken(self, name: str) -> bool:
        """Whether the name means something already: the backbone, a registered model, or what was loaded under it."""
        with self._state:
            return name == self._backbone.served.id or name in self._known or name in self._named

    def install(self, name: str, open_served: Callable[[], Served]) -> bool:
        """Blocks. Serves what is opened, which loads it into the engine, under a name of its own; False where it is taken."""
        with self._loading:
            if self.is_taken(name):
                return False
            slot = Slot(open_served(), last_use=self._clock())
            with self._state:
                self._named[name] = slot
            return True

    def remove(self, name: str) -> int | None:
        """Blocks. Ends the name at once, and its weights after the last request: how many still run; None: no such name."""
        with self._state:
            slot = self._named.pop(name, None)
            if slot is None:
                return None
            self._leaving.append(slot)
            running = slot.uses
        self._drop_idle()
        return running

    def served_as(self, name: str) -> str | None:
        """NAME@VERSION of what answers for a name of `ids`; None when nothing does."""
        with self._state:
            if name == self._backbone.served.id:
                return name
            if name in self._named:
                return self._named[name].served.id
            release = self._champions.get(name)
            return None if release is None else str(release)

    def answering(self) -> list[Served]:
        """All that may answer now: what is loaded, under whatever name, and the backbone first."""
        with self._state:
            held = (self._backbone, *self._slots.values(), *self._named.values(), *self._leaving)
            return [slot.served for slot in held]

    def readiness(self) -> Readiness:
        with self._state:
            refused = {str(release): refusal.reason for release, refusal in self._refused.items()}
            loaded = {slot.served.id for slot in (*self._slots.values(), *self._named.values())}
            return Readiness(self._registry_problem, refused, tuple(sorted(loaded)))

    def _take(self, model: str) -> Slot | None:
        """The loaded release with one more use, or None when it must be fetched first."""
        name, at, selector = model.partition("@")
        with self._state:
            if model == self._backbone.served.id:
                slot: Slot | None = self._backbone
            elif model in self._named and model not in self._known:  # what is registered later has the name
                slot = self._named[model]
            elif name not in self._known or (at and not selector):
                raise self._unknown(model)
            elif selector in ("", CHAMPION):
                if name not in self._champions:
                    raise self._without_champion(model, name)
                slot = self._slots[self._champions[name]]
            else:
                named = _VERSION.fullmatch(selector)
                release = ReleaseName(name, int(named[1])) if named else self._aliases.get(model)
                slot = self._slots.get(release) if release is not None else None
            if slot is not None:
                slot.uses += 1
                slot.last_use = self._clock()
            return slot

    def _give_back(self, slot: Slot) -> None:
        with self._state:
            slot.uses -= 1
            slot.last_use = self._clock()

    def _promote(self, release: ReleaseName) -> None:
        with self._state:
            if self._champions.get(release.name) == release:
                return
        self._load(release, as_champion=True)

    def _load(self, release: ReleaseName, *, as_champion: bool) -> None:
        """Loads the release and then lets its name point there; when it is refused, the reason is kept and nothing changes."""
        with self._loading:
            slot = self._slots.get(release)
            if slot is None:
                refusal = self._refused.get(release)
                if refusal is not None and self._clock() - refusal.at < refusal.retry_s:
                    return
                try:
                    slot = Slot(self._loader.load(release))
                except RegistryUnreachable as error:
                    self._note_registry(str(error))
                    return
                except Exception as error:  # however a release is broken, the last good one stays served
                    log.error("%s is refused: %s", release, error, exc_info=not isinstance(error, _FORESEEN))
                    with self._state:
                        retry_s = RETRY_FAILED_S if isinstance(error, NoRoom) else RETRY_REFUSED_S
                        self._refused[release] = Refusal(without_paths(str(error)), self._clock(), retry_s)
                    return
            with self._state:
                self._slots[release] = slot
                self._refused.pop(release, None)
                slot.last_use = self._clock()
                if as_champion:
                    log.info("%s is served as %s (before: %s)", release, release.name, self._champions.get(release.name))
                    self._champions[release.name] = release
                else:
                    slot.is_kept = True

    def _fetch(self, model: str, want: Want) -> ReleaseName:
        """Blocks. The release behind NAME@VERSION or NAME@ALIAS, loaded."""
        try:
            release = self._catalogue.resolve(model)
        except RegistryUnreachable as error:
            log.warning("%s cannot be looked up: %s", model, error)
            raise registry_away() from error
        except RegistryError as error:
            raise self._unknown(model, str(error)) from error
        with self._state:
            if not want.is_over:  # whoever hung up meanwhile wants nothing
                want.release = release
                self._wants.add(want)
        self._load(release, as_champion=False)
        with self._state:
            if release in self._slots and not _VERSION.fullmatch(model.partition("@")[2]) and len(self._aliases) < MAX_ALIASES:
                self._aliases[model] = release
        self._drop_idle()
        return release

    def _resolved_aliases(self) -> dict[str, ReleaseName]:
        """Where the aliases in use point now; one that was taken away is left out."""
        found: dict[str, ReleaseName] = {}
        for reference in list(self._aliases):
            try:
                found[reference] = self._catalogue.resolve(reference)
            except RegistryUnreachable:
                raise
            except RegistryError:
                continue
        return found

    def _drop_idle(self) -> None:
        """Blocks. Unloads what is no champion and has no rows: at once, or when too many are kept for their versions' sake."""
        with self._loading:
            with self._state:
                wanted = (want.release for want in self._wants)
                canaries = (canary.release for canary in _under_way(self._trails).values())
                held = {*self._champions.values(), *canaries, *wanted}
                idle = [release for release, slot in self._slots.items() if slot.uses == 0 and release not in held]
                kept = sorted((r for r in idle if self._slots[r].is_kept), key=lambda r: self._slots[r].last_use, reverse=True)
                surplus = [release for release in idle if release not in kept[: self._max_loaded]]
                gone = {release: self._slots.pop(release) for release in surplus}
                ended = [slot for slot in self._leaving if slot.uses == 0]
            for slot in ended:
                if self._loader.unload(slot.served):
                    self._leaving.remove(slot)
            for release, slot in gone.items():
                if not self._loader.unload(slot.served):
                    with self._state:
                        self._slots[release] = slot

    def _note_registry(self, problem: str) -> None:
        log.warning("The registry cannot be read; what is loaded stays served. %s", problem)
        with self._state:
            self._registry_problem = REGISTRY_AWAY

    def _unknown(self, model: str, reason: str = "") -> ApiError:
        names = ", ".join(self._ids())
        reason = reason or f"Served here: {names}, and NAME@VERSION or NAME@ALIAS of them."
        return ApiError(404, f"The model {shortened(model, 200)} does not exist. {reason}", "model_not_found", "model")

    def _without_champion(self, model: str, name: str) -> ApiError:
        """Called with the state's lock held."""
        version = self._known.get(name)
        if version is None:
            rule = f"The model {model!r} has no champion: nothing was promoted yet."
            return ApiError(
                404, f"{rule} Run `graftline promote {name}@VERSION`, or ask for a version.", "model_not_found", "model"
            )
        refusal = self._refused.get(ReleaseName(name, version))
        return unavailable(f"{name}@{version}", refusal)

    def _unavailable(self, release: ReleaseName) -> ApiError:
        with self._state:
            return unavailable(str(release), self._refused.get(release))


def _under_way(trails: Mapping[str, Trail]) -> dict[str, Canary]:
    found = {name: trail.under_way(name) for name, trail in trails.items()}
    return {name: canary for name, canary in found.items() if canary is not None}
