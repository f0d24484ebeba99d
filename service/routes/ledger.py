"""Hints that the ledger has moved. What one says is never believed: the service looks for itself."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from service.control import CONTROLLED
from service.errors import ApiError
from service.parts import PartsHere
from service.streaming import ClientLeft
from service.webhooks import is_signed

router = APIRouter()
MAX_BYTES = 2**16


@router.post("/v1/ledger/hint", status_code=202, dependencies=[CONTROLLED])
async def hint(parts: PartsHere) -> Response:
    parts.models.look_soon()
    return JSONResponse({"object": "ledger.hint", "looking": True}, 202)


@router.post("/v1/ledger/webhook", status_code=202)
async def webhook(parts: PartsHere, request: Request) -> Response:
    """MLflow's webhook, by its signature: it can send no key."""
    secret = parts.settings.webhook_secret
    if secret is None:
        message = "No webhook is taken here. Set GRAFTLINE_WEBHOOK_SECRET to the secret of MLflow's webhook."
        raise ApiError(403, message, "not_allowed", None, "permission_error")
    # Everybody may send one: what is read of it does not count among the bodies of those who have a key.
    body, timeout_s = b"", parts.settings.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            async for block in request.stream():
                body += block
                if len(body) > MAX_BYTES:
                    raise ApiError(413, f"A webhook has at most {MAX_BYTES} bytes.", "too_many_bytes")
    except ClientDisconnect as error:
        raise ClientLeft from error
    except TimeoutError as error:
        raise ApiError(408, f"A webhook must arrive within {timeout_s:g} s. Send it faster.", "body_timeout") from error
    headers, now = request.headers, time.time()
    if not is_signed(secret, headers, body, now):
        message = "A webhook carries MLflow's signature of the last five minutes, but this one's is not. Check the secret."
        raise ApiError(401, message, "invalid_signature", None, "authentication_error")
    if not parts.deliveries.take(headers["x-mlflow-delivery-id"], float(headers["x-mlflow-timestamp"]), now):
        raise ApiError(409, "A delivery is taken once, and this one came before.", "replayed_delivery", None)
    parts.models.look_soon()
    return JSONResponse({"object": "ledger.hint", "looking": True}, 202)
