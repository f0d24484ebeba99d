"""`/v1/sweeps`: sweeps from recipes. One is a fine-tuning job from then on: watched, cancelled and published as any."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import JsonValue

from adapters.whole_file import write_whole
from registry.errors import RefusedName
from registry.names import refuse_backbone_name
from service.caller import Scope, caller_of
from service.control import CONTROLLED
from service.described import Recipes, answers
from service.errors import ApiError
from service.jobs import shapes
from service.jobs.asked import RECIPE, stored
from service.jobs.from_recipe import SweepRequest, recipe_to_sweep, recipes
from service.jobs.record import Job
from service.jobs.runner import Jobs, TooManyJobs
from service.json_body import JsonRoute
from service.parts import Parts, PartsHere
from service.routes.fine_tuning import full, jobs_of

router = APIRouter(route_class=JsonRoute, dependencies=[CONTROLLED])


@router.get("/v1/recipes", summary="The server's recipes", responses=answers(Recipes))
async def list_recipes(parts: PartsHere) -> Response:
    def read() -> list[dict[str, str]]:
        found = recipes(parts.settings.recipes)
        return [{"id": name, "object": "recipe", "toml": file.read_text(encoding="utf-8")} for name, file in found.items()]

    return JSONResponse({"object": "list", "data": await asyncio.to_thread(read)})


@router.post("/v1/sweeps", summary="A sweep from a recipe")
async def create(parts: PartsHere, request: Request, body: SweepRequest) -> Response:
    with parts.audit.during(request, "job.create", body.name or body.recipe or "toml") as act:
        jobs, caller = jobs_of(parts), caller_of(request)
        job = await asyncio.to_thread(_submitted, parts, jobs, body, caller.name, caller.may(Scope.ADMIN))
        act.detail["id"] = job.id
    return JSONResponse(shapes.fine_tuning_job(job))


def _submitted(parts: Parts, jobs: Jobs, body: SweepRequest, actor: str, is_admin: bool) -> Job:
    settings = parts.settings
    recipe = recipe_to_sweep(body, settings.recipes, settings.backbone, settings.job_recipe, is_admin)
    name = body.name or recipe.name
    try:
        refuse_backbone_name(name, parts.models.backbone_id)
    except RefusedName as error:
        raise ApiError(400, str(error), "name_taken", "name") from error

    def fill(place: Path, job_id: str) -> None:
        write_whole(place / RECIPE, stored(recipe.model_copy(update={"name": job_id})))

    asked: dict[str, JsonValue] = {
        "model": parts.models.backbone_id,
        "training_file": None,
        "suffix": name,
        "name": name,
        "seed": recipe.study.seed,
        "metadata": None,
        "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
        "recipe": {"domain": recipe.domain, "trials": recipe.study.trials, "from": body.recipe},
    }
    try:
        return jobs.submit("fine_tuning", asked, actor, fill)
    except TooManyJobs as error:
        raise full(error) from error
