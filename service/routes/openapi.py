"""`/openapi.json`: what this server offers, described for programs."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.openapi import document
from service.routes.version import own_version

router = APIRouter()


@router.get("/openapi.json", include_in_schema=False)
async def describe(request: Request) -> Response:
    return JSONResponse(document(request.app, own_version()))
