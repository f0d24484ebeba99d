"""The application: every endpoint, behind the same middlewares and error shapes, whatever server runs it."""

from __future__ import annotations

from fastapi import FastAPI

from service.asgi import RequestIds, answer_errors
from service.request_log import RequestLog
from service.routes import adapters, chat, completions, metrics, models, not_offered


def new_application() -> FastAPI:
    """Answers once `service.startup.running` has given it its parts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog)
    app.add_middleware(RequestIds)  # the outermost is added last
    answer_errors(app)
    for routes in (adapters, chat, completions, models, metrics):
        app.include_router(routes.router)
    app.include_router(not_offered.router)  # last: it takes what no other has
    return app
