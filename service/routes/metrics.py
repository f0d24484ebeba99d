"""`/metrics`, where no BentoML stands before the application: under BentoML its own route gives the same text."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.meters import exposition
from service.parts import PartsHere

router = APIRouter()


@router.get("/metrics", summary="In Prometheus' text format", response_class=PlainTextResponse)
async def metrics(parts: PartsHere) -> Response:
    return Response(exposition(parts.engine.stats, parts.models.answering), media_type=CONTENT_TYPE_LATEST)
