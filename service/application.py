"""The application: every endpoint, behind the same middlewares and error shapes, whatever server runs it."""

from __future__ import annotations

from fastapi import FastAPI

from service.asgi import answer_errors
from service.drain import Draining
from service.front import Front
from service.routes import (
    adapters,
    chat,
    completions,
    console,
    files,
    fine_tuning,
    ledger,
    metrics,
    models,
    openapi,
    promotions,
    releases,
    sweeps,
    tokens,
    version,
    xray,
)

_ROUTES = (
    adapters,
    chat,
    completions,
    xray,
    files,
    fine_tuning,
    sweeps,
    ledger,
    tokens,
    models,
    openapi,
    promotions,
    releases,
    version,
    metrics,
    console,
)


def new_application() -> FastAPI:
    """Answers once `service.startup.running` has given it its parts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Draining)
    app.add_middleware(Front)  # the outermost is added last
    answer_errors(app)
    for routes in _ROUTES:
        app.include_router(routes.router)
    return app
