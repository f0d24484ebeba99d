"""The application: every endpoint, behind the same middlewares and error shapes, whatever server runs it."""

from __future__ import annotations

from fastapi import FastAPI

from service.asgi import RequestIds, answer_errors
from service.routes import chat, completions, models, not_offered


def new_application() -> FastAPI:
    """Answers once `service.startup.running` has given it its parts."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestIds)
    answer_errors(app)
    for routes in (chat, completions, models):
        app.include_router(routes.router)
    app.include_router(not_offered.router)  # last: it takes what no other has
    return app
