"""`/v1/releases/{name}/promote` and `/rollback`: promotions through the gate, and rollbacks through the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field, JsonValue

from registry.errors import ChampionMoved, RegistryError, RegistryUnreachable, UnknownRelease
from registry.home import home_directory
from registry.ledger import Ledger
from registry.names import checked_name, refuse_backbone_name, resolve
from registry.tracking import Tracking
from service.caller import caller_of
from service.control import CONTROLLED
from service.errors import ApiError
from service.jobs import shapes
from service.jobs.record import Job
from service.jobs.runner import TooManyJobs
from service.json_body import JsonRoute
from service.json_fields import JsonFields
from service.parts import Parts, PartsHere
from service.routes.fine_tuning import full, jobs_of

router = APIRouter(route_class=JsonRoute, dependencies=[CONTROLLED])
T = TypeVar("T")


class PromoteRequest(JsonFields):
    """An override of the gate is for the command line: there is no field for it."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    reason: str = Field(default="", max_length=2000)
    time_budget_s: float | None = Field(default=None, gt=0, le=86400)
    expected_head: int | None = Field(default=None, ge=0)
    """The ledger's last entry as the caller saw it, 0 for none: 409 where there is a later one, before the gate and after it."""


class ApproveRequest(JsonFields):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    reason: str = Field(default="", max_length=2000)


class RollbackRequest(JsonFields):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=2000)
    to: int | None = Field(default=None, ge=1)
    expected_head: int | None = Field(default=None, ge=0)


@router.post("/v1/releases/{name}/promote", status_code=202)
async def promote(parts: PartsHere, request: Request, name: str, body: PromoteRequest) -> Response:
    """Begins a gate in a process of its own and answers at once; the ledger's entry follows where it passes."""
    with parts.audit.during(request, "release.promote", f"{name}@{body.version}") as act:
        jobs = jobs_of(parts)

        def resolved() -> str:
            refuse_backbone_name(name, parts.models.backbone_id)
            tracking = tracking_of(parts)
            found = str(resolve(tracking, f"{name}@{body.version}"))
            ledger = Ledger(tracking, checked_name(name))
            ledger.refuse_moved(body.expected_head, ledger.head())
            return found

        release = await asyncio.to_thread(of_registry, resolved)
        asked: dict[str, JsonValue] = {"release": release, "reason": body.reason, "time_budget_s": body.time_budget_s}
        asked["expected_head"] = body.expected_head
        try:
            job = await asyncio.to_thread(jobs.submit, "promotion", asked, caller_of(request).name)
        except TooManyJobs as error:
            raise full(error) from error
        act.detail["id"] = job.id
    return JSONResponse(shapes.promotion(job), 202)


@router.get("/v1/releases/promotions/{job_id}")
async def one_promotion(parts: PartsHere, job_id: str) -> Response:
    return JSONResponse(shapes.promotion(await _promotion(parts, job_id)))


@router.get("/v1/releases/promotions/{job_id}/events")
async def events(parts: PartsHere, job_id: str) -> Response:
    job = await _promotion(parts, job_id)
    told = await asyncio.to_thread(jobs_of(parts).store.events, job.id)
    return JSONResponse(shapes.page(shapes.events(job.id, told), None, 1000))


@router.post("/v1/releases/promotions/{job_id}/cancel")
async def cancel(parts: PartsHere, request: Request, job_id: str) -> Response:
    """What the gate has read is kept: the next promotion of the version goes on from there."""
    with parts.audit.during(request, "promotion.cancel", job_id):
        job = await _promotion(parts, job_id)
        ended = await asyncio.to_thread(jobs_of(parts).cancel, job.id)
    return JSONResponse(shapes.promotion(ended or job))


@router.post("/v1/releases/{name}/rollback")
async def rollback(parts: PartsHere, request: Request, name: str, body: RollbackRequest) -> Response:
    """Makes an earlier champion the champion again, and has this service look at once."""
    with parts.audit.during(request, "release.rollback", name) as act:
        jobs_of(parts)
        actor = caller_of(request).name

        def done() -> tuple[int, int]:
            ledger = Ledger(tracking_of(parts), checked_name(name))
            recorded = ledger.rollback(body.reason, body.to, actor=actor, expected_head=body.expected_head)
            assert recorded.entry is not None
            return recorded.number, recorded.entry.adapter_version

        number, version = await asyncio.to_thread(of_registry, done)
        act.detail |= {"entry": number, "version": version}
    parts.models.look_soon()
    return JSONResponse({"object": "release.rollback", "name": name, "version": version, "entry": number, "by": actor})


@router.post("/v1/releases/{name}/approve")
async def approve(parts: PartsHere, request: Request, name: str, body: ApproveRequest) -> Response:
    """Makes champion what somebody else proposed, and has this service look at once. Who approves is the name of the key."""
    with parts.audit.during(request, "release.approve", f"{name}@{body.version}") as act:
        jobs_of(parts)
        actor = caller_of(request).name

        def done() -> tuple[int, str | None]:
            recorded = Ledger(tracking_of(parts), checked_name(name)).approve(body.version, reason=body.reason, actor=actor)
            assert recorded.entry is not None
            return recorded.number, recorded.entry.proposed_by

        number, proposer = await asyncio.to_thread(of_registry, done)
        act.detail |= {"entry": number, "version": body.version, "proposed_by": proposer}
    parts.models.look_soon()
    told = {"version": body.version, "entry": number, "proposed_by": proposer, "by": actor}
    return JSONResponse({"object": "release.approval", "name": name, **told})


async def _promotion(parts: Parts, job_id: str) -> Job:
    job = await asyncio.to_thread(jobs_of(parts).store.find, job_id)
    if job is None or job.kind != "promotion":
        raise ApiError(404, f"There is no promotion {job_id!r}.", "promotion_not_found", "id")
    return job


def tracking_of(parts: Parts) -> Tracking:
    return Tracking.at(home_directory(parts.settings.home), parts.settings.tracking_uri).existing()


def of_registry(work: Callable[[], T]) -> T:
    """What the registry says, as an answer. Its sentences name commands and names, and no files."""
    try:
        return work()
    except RegistryUnreachable as error:
        message = "The registry does not answer now. Ask again later."
        raise ApiError(503, message, "registry_unreachable", None, "server_error", {"retry-after": "10"}) from error
    except UnknownRelease as error:
        raise ApiError(
            404, "There is no such release. `graftline status` lists what was published.", "release_not_found"
        ) from error
    except ChampionMoved as error:
        raise ApiError(409, str(error), "champion_moved", None, headers={"x-should-retry": "false"}) from error
    except RegistryError as error:
        raise ApiError(400, str(error), "refused_by_the_ledger") from error
