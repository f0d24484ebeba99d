"""Start-up: the backbone, the engine and the catalogue that the settings name, and what runs beside the endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from fastapi import FastAPI

from adapters.backbone import Backbone
from engine.engine import Mortal
from engine.own_thread import compute_on, in_own_thread
from registry.home import home_directory
from registry.tracking import Tracking
from service import request_log, spans
from service.access import Access
from service.admission import Admission, Bounds
from service.audit import AuditLog
from service.canary import Canaries, recorded_rollback
from service.canary_shadow import Shadows
from service.catalogue import Catalogue, FrozenCatalogue, RegistryCatalogue
from service.drain import Drain, drain_of, drain_on_sigterm
from service.engines import engine_of, in_context
from service.jobs.runner import Jobs
from service.jobs.uploads import Uploads
from service.keys import KeyStore
from service.meters import Forgetting
from service.models import ServedModels
from service.parts import Parts
from service.quota import Quotas
from service.run_time import RunTimeAdapters
from service.run_time_files import Limits
from service.settings import Settings

FORGET_EVERY_S = 60.0


def start(settings: Settings, num_threads: int) -> Parts:
    """Blocks until the backbone and what the ledger promoted are loaded; the registry being away does not stop it."""
    compute_on(num_threads)
    backbone, catalogue = open_parts(settings)
    backbone = in_context(backbone, settings)
    engine = engine_of(settings, backbone)
    models = ServedModels(engine, backbone, catalogue, settings.max_loaded, trails=catalogue.trails)
    models.refresh()
    limits = Limits(settings.max_adapter_bytes, settings.max_lora_rank)
    directory = settings.adapter_directory
    run_time = RunTimeAdapters(engine, backbone, catalogue, models, directory, limits, settings.max_named_adapters)
    home = home_directory(settings.home)
    audit = AuditLog(home)
    roll_back = recorded_rollback(catalogue.roll_back_canary, audit)
    canaries = Canaries(models, Shadows(models, engine, settings.max_rows), roll_back)
    uploads = Uploads(home / "files", settings.max_file_bytes, settings.max_files_bytes)
    uploads.sweep()
    jobs = _jobs(settings, home) if settings.frozen is None else None
    bounds = Bounds(settings.max_rows + max(1, settings.max_rows // 8), settings.max_queued_rows, settings.max_queued_tokens)
    admission = Admission(bounds, Quotas())
    return Parts(settings, backbone, engine, models, audit, canaries, run_time, jobs, uploads, admission, int(time.time()))


def _jobs(settings: Settings, home: Path) -> Jobs:
    read = {**settings.environment(), "GRAFTLINE_WEBHOOK_SECRET": ""}
    return Jobs(home, read, {"fine_tuning": settings.jobs_at_once, "promotion": 1}, settings.max_queued_jobs, settings.max_job_s)


def open_parts(settings: Settings) -> tuple[Backbone, Catalogue]:
    if settings.frozen is not None:
        bundle = FrozenCatalogue(settings.frozen)
        return bundle.load_backbone(settings.device), bundle
    tracking = Tracking.at(home_directory(settings.home), settings.tracking_uri)
    return Backbone.load(settings.backbone, device=settings.device), RegistryCatalogue(tracking, settings.names)


@contextlib.asynccontextmanager
async def running(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Inside, the application answers and follows the ledger. Leaving ends what runs beside it and closes the engine."""
    request_log.configure(settings.log_format, settings.log_level)
    spans.configure()
    app.state.access = Access(KeyStore(home_directory(settings.home)), settings.open, settings.open_metrics)
    app.state.access.announce()
    # Only the thread that steps computes on several threads: see engine.own_thread.
    num_threads = settings.threads or torch.get_num_threads()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=compute_on, initargs=(1,)))
    parts = await asyncio.to_thread(in_own_thread, partial(start, settings, num_threads))
    compute_on(1)
    app.state.parts = parts
    app.state.drain = Drain()
    drain_on_sigterm(app.state.drain, settings.grace_s)
    works = (
        parts.models.follow(settings.poll_s),
        forget(parts.models),
        parts.canaries.watch(),
        parts.canaries.shadows.run(),
        *([parts.jobs.follow()] if parts.jobs else []),
    )
    beside = [asyncio.create_task(work) for work in works]
    app.state.beside = beside
    try:
        yield
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if parts.jobs is not None:
            parts.jobs.close()
        await asyncio.to_thread(parts.engine.close)
        await asyncio.to_thread(spans.close)


async def forget(models: ServedModels) -> None:
    """Takes away, for ever, the series of what is served no more."""
    forgetting = Forgetting(lambda: (one.id for one in models.answering()))
    while True:
        forgetting.look()
        await asyncio.sleep(FORGET_EVERY_S)


def is_ready(app: FastAPI) -> bool:
    """Started, not going away, and nothing that must run beside the endpoints has ended."""
    beside: list[asyncio.Task[None]] | None = getattr(app.state, "beside", None)
    drain = drain_of(app)
    if drain is not None and drain.is_begun:
        return False
    return beside is not None and not any(task.done() for task in beside) and is_alive(app)


def is_alive(app: FastAPI) -> bool:
    """False once nothing but another process can help: the engine's own has ended. True while it starts."""
    parts: Parts | None = getattr(app.state, "parts", None)
    return parts is None or not isinstance(parts.engine, Mortal) or parts.engine.death is None
