"""`/v1/releases`: what every name serves and could serve, the gate's tables, and how champion and canary have done here."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

from registry.gate_report import COLUMNS
from registry.names import ReleaseName, checked_name, resolve
from registry.status import status
from registry.verdicts import recorded_report
from service.described import GateTable, Releases, answers
from service.errors import ApiError
from service.parts import PartsHere
from service.routes.fine_tuning import jobs_of
from service.routes.promotions import of_registry, tracking_of

router = APIRouter()


@router.get("/v1/releases", summary="Every name with its versions, its history and what waits", responses=answers(Releases))
async def releases(parts: PartsHere) -> Response:
    jobs_of(parts)

    def read() -> list[JsonValue]:
        return [
            {"object": "release.name", **name.model_dump(mode="json"), "head": name.history[-1].number if name.history else 0}
            for name in status(tracking_of(parts)).names
        ]

    return JSONResponse({"object": "list", "data": await asyncio.to_thread(of_registry, read)})


@router.get(
    "/v1/releases/{name}/versions/{version}/gate", summary="What the gate found of a version", responses=answers(GateTable)
)
async def gate(parts: PartsHere, name: str, version: int) -> Response:
    jobs_of(parts)

    def read() -> dict[str, JsonValue] | None:
        tracking = tracking_of(parts)
        subject = resolve(tracking, str(ReleaseName(checked_name(name), version)))
        report = recorded_report(tracking, subject)
        if report is None:
            return None
        return {
            "object": "release.gate",
            "release": str(subject),
            "verdict": report.verdict,
            "sentence": report.sentence,
            "columns": list(COLUMNS),
            "rows": [list(row) for row in report.rows()],
            "report": report.model_dump(mode="json"),
        }

    told = await asyncio.to_thread(of_registry, read)
    if told is None:
        message = f"{name}@{version} was not gated. Its gate runs when it is promoted."
        raise ApiError(404, message, "not_gated", "version")
    return JSONResponse(told)


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
