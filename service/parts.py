"""What the endpoints work with, and how they get it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from adapters.backbone import Backbone
from engine.engine import Engine
from service.admission import Admission
from service.audit import AuditLog
from service.canary import Canaries
from service.jobs.runner import Jobs
from service.jobs.uploads import Uploads
from service.models import ServedModels
from service.run_time import RunTimeAdapters
from service.settings import Settings
from service.webhooks import Deliveries


@dataclass(frozen=True)
class Parts:
    """Made once, when the service starts; an endpoint reads it from the application's state."""

    settings: Settings
    backbone: Backbone
    engine: Engine
    models: ServedModels
    audit: AuditLog
    canaries: Canaries
    run_time: RunTimeAdapters
    jobs: Jobs | None  # None where there is no registry
    uploads: Uploads
    admission: Admission
    started_at: int  # seconds since 1970
    deliveries: Deliveries = field(default_factory=Deliveries)  # webhooks that were taken


def _parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsHere = Annotated[Parts, Depends(_parts_of)]
