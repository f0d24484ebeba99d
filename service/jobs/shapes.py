"""Jobs as the wire has them: OpenAI's fine-tuning shape, and promotions in the same style."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import ApiError
from service.jobs.record import Job, JobEvent
from service.shortened import shortened


def fine_tuning_job(job: Job) -> dict[str, object]:
    asked, result = job.request, job.result or {}
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.state,
        "model": asked["model"],
        "fine_tuned_model": result.get("release"),
        "training_file": asked["training_file"],
        "validation_file": None,
        "hyperparameters": asked["hyperparameters"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": asked["hyperparameters"]}},
        "seed": asked["seed"],
        "metadata": asked["metadata"],
        "suffix": asked["suffix"],
        "integrations": [],
        "organization_id": "graftline",
        "result_files": [],
        "trained_tokens": None,
        "estimated_finish": None,
        "error": None if job.error is None else {"code": "job_failed", "message": job.error, "param": None},
        "graftline": {"result": job.result, "recipe": asked["recipe"]},
    }


def promotion(job: Job) -> dict[str, object]:
    result = job.result or {}
    return {
        "object": "release.promotion",
        "id": job.id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.state,
        "release": job.request["release"],
        "reason": job.request["reason"],
        "by": job.actor,
        "promoted": result.get("promoted"),
        "proposed": result.get("proposed"),
        "verdict": result.get("verdict"),
        "sentence": result.get("sentence"),
        "error": None if job.error is None else {"code": "job_failed", "message": job.error, "param": None},
    }


def events(job_id: str, told: Sequence[JobEvent]) -> list[dict[str, object]]:
    """Newest first; an event's id is its place in the job."""
    return [
        {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{job_id.partition('-')[2]}-{number}",
            "created_at": int(event.at),
            "level": "info",
            "message": event.message,
            "type": "message" if event.data is None else "metrics",
            "data": event.data or {},
        }
        for number, event in reversed(list(enumerate(told)))
    ]


def checkpoints(job: Job) -> list[dict[str, object]]:
    """The one that was published; none before that."""
    result = job.result
    if result is None:
        return []
    score = result["score"]
    chosen = score["chosen"] if isinstance(score, dict) else {}
    numbers = {key: value for key, value in chosen.items() if isinstance(value, int | float)} if isinstance(chosen, dict) else {}
    return [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": f"ftckpt-{job.id.partition('-')[2]}",
            "created_at": job.finished_at,
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": result["release"],
            "step_number": result["trial"],
            "metrics": numbers,
        }
    ]


def page(found: Sequence[dict[str, object]], after: str | None, limit: int) -> dict[str, object]:
    """At most `limit` of the list, from what follows the id `after`."""
    ids = [one["id"] for one in found]
    if after is not None and after not in ids:
        raise ApiError(
            400, f"after is the id of an entry of this list, but got {shortened(after)}. Leave it out.", "invalid_value", "after"
        )
    begin = 0 if after is None else ids.index(after) + 1
    shown = list(found[begin : begin + limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": begin + limit < len(found),
    }
