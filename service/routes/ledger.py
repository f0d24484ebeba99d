"""Hints that the ledger has moved. What one says is never believed: the service looks for itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from service.control import CONTROLLED
from service.errors import ApiError
from service.parts import PartsHere
from service.streaming import ClientLeft

router = APIRouter()
MAX_BYTES = 2**16
MAX_AGE_S = 300.0
_SECONDS = re.compile(r"[0-9]{1,12}")


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
    if not is_signed(secret, request.headers, body, time.time()):
        message = "A webhook carries MLflow's signature of the last five minutes, but this one's is not. Check the secret."
        raise ApiError(401, message, "invalid_signature", None, "authentication_error")
    parts.models.look_soon()
    return JSONResponse({"object": "ledger.hint", "looking": True}, 202)


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether MLflow signed this delivery: HMAC-SHA256 over its id, its time and its body."""
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not _SECONDS.fullmatch(sent) or abs(now - int(sent)) > MAX_AGE_S:
        return False
    signed = f"{delivery}.{sent}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(expected.encode(), headers.get("x-mlflow-signature", "").encode())
