"""`/v1/fine_tuning/jobs`: sweeps over uploaded data. The result is a candidate release, never a promotion."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from adapters.whole_file import write_whole
from registry.home import home_directory
from service.caller import caller_of
from service.control import CONTROLLED
from service.errors import ApiError
from service.jobs import shapes
from service.jobs.asked import RECIPE, JobRequest, recipe_of, stored, task_name
from service.jobs.preparing import prepared
from service.jobs.record import Job
from service.jobs.runner import Jobs, TooManyJobs
from service.jobs.uploads import UploadedFile
from service.json_body import JsonRoute
from service.parts import Parts, PartsHere
from service.routes.files import uploaded
from service.shortened import shortened

router = APIRouter(route_class=JsonRoute, dependencies=[CONTROLLED])
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/v1/fine_tuning/jobs")
async def create(parts: PartsHere, request: Request, body: JobRequest) -> Response:
    with parts.audit.during(request, "job.create", body.suffix or body.training_file) as act:
        body.refuse_unsupported()
        jobs = jobs_of(parts)
        if body.model != parts.models.backbone_id:
            message = f"A job fits adapters around {parts.models.backbone_id!r}, but got the model {shortened(body.model)}."
            raise ApiError(404, message, "model_not_found", "model")
        body.refuse_name_of(parts.models.backbone_id)
        file = await uploaded(parts, body.training_file, "training_file")
        job = await asyncio.to_thread(_submitted, parts, jobs, body, file, caller_of(request).name)
        act.detail["id"] = job.id
    return JSONResponse(shapes.fine_tuning_job(job))


@router.get("/v1/fine_tuning/jobs")
async def list_jobs(parts: PartsHere, limit: Limit = 20, after: str | None = None) -> Response:
    store = jobs_of(parts).store
    # Read only what is shown: ids are in the order of making.
    listed = shapes.page([{"id": job_id} for job_id in store.ids("fine_tuning")], after, limit)
    data = listed["data"]
    assert isinstance(data, list)
    found = await asyncio.to_thread(lambda: [store.find(entry["id"]) for entry in data])
    return JSONResponse({**listed, "data": [shapes.fine_tuning_job(job) for job in found if job is not None]})


@router.get("/v1/fine_tuning/jobs/{job_id}")
async def one_job(parts: PartsHere, job_id: str) -> Response:
    return JSONResponse(shapes.fine_tuning_job(await _job(parts, job_id)))


@router.get("/v1/fine_tuning/jobs/{job_id}/events")
async def events(parts: PartsHere, job_id: str, limit: Limit = 20, after: str | None = None) -> Response:
    job = await _job(parts, job_id)
    told = await asyncio.to_thread(jobs_of(parts).store.events, job.id)
    return JSONResponse(shapes.page(shapes.events(job.id, told), after, limit))


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
async def checkpoints(parts: PartsHere, job_id: str, limit: Limit = 10, after: str | None = None) -> Response:
    return JSONResponse(shapes.page(shapes.checkpoints(await _job(parts, job_id)), after, limit))


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel")
async def cancel(parts: PartsHere, request: Request, job_id: str) -> Response:
    with parts.audit.during(request, "job.cancel", job_id):
        job = await _job(parts, job_id)
        ended = await asyncio.to_thread(jobs_of(parts).cancel, job.id)
    return JSONResponse(shapes.fine_tuning_job(ended or job))


def jobs_of(parts: Parts) -> Jobs:
    if parts.jobs is None:
        message = "This service runs from a Bento's own files: it has no registry to publish to. Ask one that has."
        raise ApiError(400, message, "no_registry", None)
    return parts.jobs


def full(error: TooManyJobs) -> ApiError:
    return ApiError(429, str(error), "too_many_jobs", None, "rate_limit_error", {"retry-after": "60"})


async def _job(parts: Parts, job_id: str) -> Job:
    job = await asyncio.to_thread(jobs_of(parts).store.find, job_id)
    if job is None or job.kind != "fine_tuning":
        raise ApiError(404, f"There is no fine-tuning job {job_id!r}.", "job_not_found", "fine_tuning_job_id")
    return job


def _submitted(parts: Parts, jobs: Jobs, body: JobRequest, file: UploadedFile, actor: str) -> Job:
    """Everything that is wrong with the data or the recipe is said before there is a job."""
    settings = parts.settings
    domains = home_directory(settings.home) / "domains"
    name = body.suffix or file.id
    content = parts.uploads.content(file)
    task = prepared(content, file.filename, domains, task_name(name), body.columns, body.separator, jobs.closed)
    recipe = recipe_of(body, file.id, settings.backbone, task, file.rows, settings.job_recipe)

    def fill(place: Path, job_id: str) -> None:
        write_whole(place / RECIPE, stored(recipe.model_copy(update={"name": job_id})))

    request = {
        **body.model_dump(mode="json", include={"model", "training_file", "suffix", "seed", "metadata", "recipe"}),
        "hyperparameters": body.chosen.model_dump(mode="json"),
        "seed": recipe.study.seed,
        "name": name,
    }
    try:
        return jobs.submit("fine_tuning", request, actor, fill)
    except TooManyJobs as error:
        raise full(error) from error
