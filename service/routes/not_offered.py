"""Every other path below /v1, refused in the OpenAI shape: BentoML's own 404 is plain text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.errors import ApiError

router = APIRouter()


@router.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def not_offered(request: Request, path: str) -> Response:
    offered = "/v1/chat/completions, /v1/completions and /v1/models"
    raise ApiError(404, f"{request.method} /v1/{path} is not offered here. There are {offered}.", "unknown_url")
