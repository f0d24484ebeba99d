"""A fine-tuning job: a sweep over a recipe, and its best trial published as a candidate. It promotes nothing."""

from __future__ import annotations

from pydantic import JsonValue

from registry.release import mark_candidate
from registry.tracking import Tracking
from service.commands.releases import publish_directory
from service.jobs.asked import RECIPE
from service.jobs.process import Telling
from service.jobs.record import Job
from service.settings import Settings
from service.sweep_view import describe
from tuning.candidates import candidate_to_publish
from tuning.continuing import pinned
from tuning.recipe import Recipe
from tuning.study import Event, Sweep

_MILESTONES = (0.25, 0.5, 0.75, 1.0)


def sweep(job: Job, settings: Settings, tell: Telling) -> dict[str, JsonValue]:
    recipe = Recipe.model_validate_json((tell.place / RECIPE).read_bytes())
    tracking = Tracking.at(settings.home, settings.tracking_uri).create()
    study = Sweep(pinned(recipe, tracking), settings.home.absolute(), tracking)
    study.run(study.create(), Shown(tell).on_event)
    chosen = candidate_to_publish(settings.home.absolute(), recipe.name)
    with tell.committing():
        release = publish_directory(tracking, chosen.directory, str(job.request["name"]), chosen.run_id)
        mark_candidate(tracking, release.full_name)
    tell(f"The best trial, {chosen.trial}, is published as {release.full_name}. It is a candidate: nothing was promoted.")
    return {"release": str(release.full_name), "trial": chosen.trial, "score": chosen.score, "params": chosen.params}


class Shown:
    """A sweep's events as a job's: of a fit and its measures, every quarter."""

    def __init__(self, tell: Telling) -> None:
        self._tell = tell
        self._passed: set[tuple[int, str, float]] = set()

    def on_event(self, event: Event) -> None:
        who = f"Trial {event.trial}: " if event.trial >= 0 else ""
        if event.kind in ("fit", "measure"):
            reached = (event.trial, event.kind, max((mark for mark in _MILESTONES if event.share >= mark), default=0.0))
            if reached[-1] == 0.0 or reached in self._passed:
                return
            self._passed.add(reached)
            self._tell(f"{who}{event.kind} {reached[-1]:.0%}")
            return
        text = f"{who}{event.kind} {describe(event)}".rstrip()
        if event.kind != "complete" or event.score is None:
            self._tell(text)
            return
        gain, retention = event.score["chosen"]["domain_gain"], event.score["retention"]
        feasible = bool(event.score["feasible"])
        self._tell(text, {"trial": event.trial, "domain_gain": gain, "retention": retention, "feasible": feasible})
