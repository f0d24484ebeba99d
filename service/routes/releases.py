"""`/v1/releases/{name}`: the champion, what stands beside it, and how both have done in this process."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

from service.errors import ApiError
from service.parts import PartsHere

router = APIRouter()


@router.get("/v1/releases/{name}")
async def release(parts: PartsHere, name: str) -> Response:
    if not parts.models.is_registered(name):
        message = f"The release {name!r} does not exist. Ask for the name of a registered model, without a version."
        raise ApiError(404, message, "model_not_found", "name")
    champion = parts.models.served_as(name)
    counts = parts.canaries.counts
    told: dict[str, JsonValue] = {
        "object": "release",
        "name": name,
        "registry": parts.models.readiness().registry or "ok",
        "champion": None if champion is None else {"id": champion, "counts": counts.seen(champion).wire()},
        "canary": parts.canaries.described(name),
    }
    return JSONResponse(told)
