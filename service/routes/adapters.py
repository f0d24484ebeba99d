"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in vLLM's shape."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from service.control import CONTROLLED
from service.errors import ApiError
from service.json_body import JsonRoute
from service.parts import PartsHere

router = APIRouter(route_class=JsonRoute, dependencies=[CONTROLLED])


class LoadRequest(BaseModel):
    """`load_inplace` is refused: what a name means does not change while requests run on it."""

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool = False


class UnloadRequest(BaseModel):
    lora_name: str = Field(min_length=1)


@router.post("/v1/load_lora_adapter", summary="Serve an adapter under a name", response_class=PlainTextResponse)
async def load(parts: PartsHere, request: Request, body: LoadRequest) -> PlainTextResponse:
    with parts.audit.during(request, "adapter.load", body.lora_name) as act:
        act.detail["path"] = body.lora_path
        if body.load_inplace:
            message = "load_inplace is not offered: a name never changes its meaning. Unload it first, or name another."
            raise ApiError(400, message, "unsupported_parameter", "load_inplace")
        await asyncio.to_thread(parts.run_time.load, body.lora_name, body.lora_path)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", summary="Serve it no longer", response_class=PlainTextResponse)
async def unload(parts: PartsHere, request: Request, body: UnloadRequest) -> PlainTextResponse:
    with parts.audit.during(request, "adapter.unload", body.lora_name):
        running = await asyncio.to_thread(parts.run_time.unload, body.lora_name)
    left = f" {running} requests that run on it are finished first." if running else ""
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.{left}")
