"""Adapters that are loaded and unloaded while the service runs: from the registry, or from the directory that is allowed."""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import torch

from adapters.adapter_router import FILE as ROUTER
from adapters.backbone import Backbone
from adapters.errors import AdapterError
from engine.engine import Engine
from engine.errors import EngineError
from engine.profile import Profile
from registry.errors import RefusedName, RegistryError, RegistryUnreachable
from registry.manifest import MANIFEST, directory_digest, file_digest
from registry.names import checked_name
from registry.release import check_backbone
from service.catalogue import Catalogue
from service.errors import ApiError
from service.lease import Served
from service.models import ServedModels
from service.run_time_files import Limits, checked_profile, private_copy, refused, unreadable
from service.shortened import shortened

log = logging.getLogger("graftline.models")
MAX_NAME = 128
_RELEASE = re.compile(r"[^/@]+@v?[1-9][0-9]{0,17}")


class RunTimeAdapters:
    """Calls block and may come from any thread. Whatever is refused, nothing of it is loaded and nothing else changes."""

    def __init__(
        self,
        engine: Engine,
        backbone: Backbone,
        catalogue: Catalogue,
        models: ServedModels,
        allowed: Path | None,
        limits: Limits,
        max_adapters: int,
    ) -> None:
        """`allowed` is the directory whose adapters may be named by path; None: only releases may be named."""
        self._engine, self._backbone, self._catalogue, self._models = engine, backbone, catalogue, models
        self._allowed, self._limits, self._max_adapters = allowed, limits, max_adapters
        self._numbers = itertools.count(1)
        self._loading = threading.Lock()  # one at a time, from the count of names to the name

    def load(self, name: str, path: str) -> str:
        """What the name now means: NAME@VERSION of a release, or the name itself."""
        with self._loading:
            return self._load(name, path)

    def _load(self, name: str, path: str) -> str:
        self._check_name(name)
        if len(self._models.named()) >= self._max_adapters:
            message = f"At most {self._max_adapters} adapters are loaded by name at a time. Unload one before {name!r}."
            raise ApiError(409, message, "too_many_adapters", "lora_name", headers={"x-should-retry": "false"})
        with ExitStack() as kept:
            profile, served_id, digest = self._release(path) if _RELEASE.fullmatch(path) else self._files(kept, name, path)
            # A number that is never used again: what is unloaded while rows run on it is no obstacle to loading it anew.
            engine_name = f"{name}#{digest[:12]}.{next(self._numbers)}"
            if not self._models.install(name, lambda: self._into_engine(engine_name, profile, served_id or name, digest)):
                raise self._taken(name)
        log.info("%s is served as %s", served_id or path, name)
        return served_id or name

    def unload(self, name: str) -> int:
        """How many requests still run on it; its weights leave the engine after the last of them."""
        running = self._models.remove(name)
        if running is None:
            names = ", ".join(self._models.named()) or "none"
            message = f"No adapter was loaded under the name {shortened(name)}. Loaded by name: {names}."
            raise ApiError(404, message, "adapter_not_found", "lora_name")
        return running

    def _check_name(self, name: str) -> None:
        try:
            checked_name(name)
        except RefusedName as error:
            raise ApiError(400, str(error), "invalid_value", "lora_name") from error
        if len(name) > MAX_NAME or not name.isprintable():
            message = f"A name has at most {MAX_NAME} printable characters, but got {len(name)} or one that is none. Shorten it."
            raise ApiError(400, message, "invalid_value", "lora_name")
        if self._models.is_taken(name):
            raise self._taken(name)

    def _taken(self, name: str) -> ApiError:
        message = f"The name {name!r} means something here already: the backbone, a registered model or a loaded adapter."
        return ApiError(400, f"{message} Unload it first, or choose another name.", "name_taken", "lora_name")

    def _release(self, reference: str) -> tuple[Profile, str, str]:
        try:
            release = self._catalogue.open(self._catalogue.resolve(reference))
            check_backbone(release, self._backbone.fingerprint)
            if (release.directory / ROUTER).is_file():
                message = f"{reference!r} is a router, which writes nothing itself. Promote it, and ask for it by its own name."
                raise refused(400, "adapter_refused", message)
            profile = Profile.load(release.directory)
        except RegistryUnreachable as error:
            message = f"The registry does not answer, so {reference!r} cannot be loaded now. Ask again later."
            raise ApiError(503, message, "registry_unreachable", "lora_path", "server_error", {"retry-after": "10"}) from error
        except (RegistryError, AdapterError) as error:
            log.warning("%s is refused: %s", reference, error)
            raise _of_registry(error, reference) from error
        return profile, str(release.full_name), file_digest(release.directory / MANIFEST)

    def _files(self, kept: ExitStack, name: str, path: str) -> tuple[Profile, None, str]:
        if self._allowed is None:
            message = f"Here a lora_path is a release NAME@VERSION, since no directory is allowed, but got {path!r}."
            raise refused(400, "path_not_allowed", f"{message} Publish the adapter, or set GRAFTLINE_ADAPTER_DIRECTORY.")
        try:
            scratch = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="graftline-adapter-")))
        except OSError as error:
            raise unreadable(path, error) from error
        copy = kept.enter_context(private_copy(self._allowed, path, scratch, self._limits))
        return checked_profile(copy, self._backbone, self._limits, path), None, directory_digest(copy)

    def _into_engine(self, engine_name: str, profile: Profile, served_id: str, digest: str) -> Served:
        try:
            self._engine.load(engine_name, profile)
        except (AdapterError, EngineError) as error:
            log.warning("%s is refused by the engine: %s", served_id, error)
            raise refused(400, "adapter_refused", f"The engine refuses {served_id!r}: {error}") from error
        probe = self._backbone.chat_ids("?")
        with torch.no_grad():
            overhead = len(profile.transform(self._backbone, probe).ids) - len(probe)
        return Served(served_id, engine_name, digest, overhead)


def _of_registry(error: RegistryError | AdapterError, reference: str) -> ApiError:
    """Which fault it is, without the sentence, which may name the server's files; the log has it."""
    from registry.errors import BackboneMismatch, UnknownRelease

    match error:
        case UnknownRelease() | RefusedName():
            message, status, code = (
                f"There is no release {reference!r}. Publish it first, or correct the name.",
                404,
                "release_not_found",
            )
        case BackboneMismatch():
            message, status, code = (
                f"{reference!r} was fitted on another backbone. Fit its recipe again.",
                400,
                "backbone_mismatch",
            )
        case _:
            message, status, code = f"The files of {reference!r} are damaged. Publish it again.", 400, "release_damaged"
    return refused(status, code, message)
