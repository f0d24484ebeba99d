"""Start-up: the backbone, the engine and the catalogue that the settings name."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.torch_engine import TorchEngine
from registry.home import home_directory
from registry.tracking import Tracking
from service.catalogue import Catalogue, FrozenCatalogue, RegistryCatalogue
from service.models import ServedModels
from service.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What the endpoints need."""

    backbone: Backbone
    engine: Engine
    models: ServedModels
    started_at: int  # seconds since 1970


def start(settings: Settings) -> Parts:
    """Blocks until the backbone and what the ledger promoted are loaded; the registry being away does not stop it."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    backbone, catalogue = open_parts(settings)
    engine = TorchEngine(backbone, max_rows=settings.max_rows)
    models = ServedModels(engine, backbone, catalogue, settings.max_loaded)
    models.refresh()
    return Parts(backbone, engine, models, int(time.time()))


def open_parts(settings: Settings) -> tuple[Backbone, Catalogue]:
    if settings.frozen is not None:
        bundle = FrozenCatalogue(settings.frozen)
        return bundle.load_backbone(settings.device), bundle
    tracking = Tracking.at(home_directory(settings.home), settings.tracking_uri)
    return Backbone.load(settings.backbone, device=settings.device), RegistryCatalogue(tracking, settings.names)
