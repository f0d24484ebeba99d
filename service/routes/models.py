"""What may be asked for: `/v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from service.answering import leased
from service.described import ModelCard, ModelList, answers
from service.parts import Parts, PartsHere

router = APIRouter()


@router.get("/v1/models", summary="What may be asked for", responses=answers(ModelList))
async def list_models(parts: PartsHere) -> Response:
    readiness = parts.models.readiness()
    detail = {"registry": readiness.registry or "ok", "refused": readiness.refused, "loaded": readiness.loaded}
    return JSONResponse({"object": "list", "data": [_card(parts, name) for name in parts.models.ids()], "graftline": detail})


@router.get("/v1/models/{model:path}", summary="One of them", responses=answers(ModelCard))
async def one_model(parts: PartsHere, model: str) -> Response:
    lease = await leased(parts, model)
    lease.release()
    return JSONResponse({**_card(parts, model), "root": lease.served.id})


def _card(parts: Parts, name: str) -> dict[str, Any]:
    backbone = parts.models.backbone_id
    return {
        "id": name,
        "object": "model",
        "created": parts.started_at,
        "owned_by": "graftline",
        "root": parts.models.served_as(name),
        "parent": None if name == backbone else backbone,
        "max_model_len": parts.backbone.context_length,
    }
