"""Releases into the engine and out of it: checked, loaded under a name that holds their digest, unloaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from adapters.adapter_router import AdapterRouter
from adapters.backbone import Backbone
from engine.engine import Engine
from engine.errors import EngineError
from engine.inspect import inspector
from engine.profile import Profile
from registry.manifest import MANIFEST, file_digest
from registry.names import ReleaseName
from registry.release import check_backbone
from service.catalogue import Catalogue
from service.lease import Served

log = logging.getLogger("graftline.models")


@dataclass(frozen=True)
class ReleaseLoader:
    """One call at a time: whoever calls sees to that. What blocks here is the registry's files and the engine."""

    engine: Engine
    backbone: Backbone
    catalogue: Catalogue

    def load(self, release: ReleaseName) -> Served:
        """Raises what the registry, an adapter's files or the engine says against it."""
        opened = self.catalogue.open(release)
        check_backbone(opened, self.backbone.fingerprint)
        digest = file_digest(opened.directory / MANIFEST)
        router = AdapterRouter.load(opened.directory)
        if router is not None:
            router.check(self.backbone)
            if inspector(self.engine) is None:
                raise EngineError(f"{release} chooses by the backbone's states, which this engine does not show.")
            return Served(str(release), None, digest, router=router)
        name, profile = f"{release.name}@v{release.version}#{digest[:12]}", Profile.load(opened.directory)
        self.engine.load(name, profile)
        probe = self.backbone.chat_ids("?")
        with torch.no_grad():
            overhead = len(profile.transform(self.backbone, probe).ids) - len(probe)
        return Served(str(release), name, digest, overhead)

    def unload(self, served: Served) -> bool:
        """False where a row that was cancelled a moment ago is still there: the next look finds it gone."""
        if served.profile is None:  # a router holds nothing in the engine
            return True
        try:
            self.engine.unload(served.profile)
        except EngineError as error:
            log.info("%s stays loaded for now: %s", served.id, error)
            return False
        log.info("%s was unloaded", served.id)
        return True
