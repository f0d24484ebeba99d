"""A study as a report tells it: from its own storage while that is here, else from what its run in MLflow keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.runs import children_of, document_of, parent_of, run_found
from registry.tracking import Tracking
from service.report.material import StudyMaterial, TrialPoint
from tuning.asked import limits
from tuning.candidates import Candidate, candidates_of, in_order
from tuning.hypervolume import front
from tuning.recipe import Recipe
from tuning.records import RUN_KEY, run_key
from tuning.standing import recipe_of, stored_study
from tuning.stop_items import is_partial
from tuning.worker import FAMILIES_KEY


def study_stored(home: Path, name: str, storage_url: str | None = None) -> tuple[StudyMaterial, list[Candidate]] | None:
    """With its candidates, best first; None where its storage is not here."""
    study = stored_study(home, name, storage_url)
    if study is None:
        return None
    recipe = recipe_of(study)
    ranked = candidates_of(study)
    scores = {candidate.trial: candidate for candidate in ranked}
    told, trials = study.user_attrs, study.get_trials(deepcopy=False)
    points = [
        TrialPoint(
            trial.number,
            trial.state.name,
            trial.params,
            scores[trial.number].score if trial.number in scores else None,
            scores[trial.number].run_id
            if trial.number in scores
            else trial.user_attrs.get(RUN_KEY) or told.get(run_key(trial.number)),
            _reason(trial.user_attrs.get("failure")),
        )
        for trial in trials
    ]
    states = Counter(trial.state.name for trial in trials)
    made = _material(
        study.study_name,
        recipe.domain if recipe else "",
        told.get(RUN_KEY),
        points,
        ranked,
        limits(study, recipe).trials if recipe else None,
        states["RUNNING"],
        told.get(FAMILIES_KEY, {}),
    )
    return made, ranked


def study_tracked(tracking: Tracking, run_id: str) -> StudyMaterial | None:
    """The study that fitted this run's adapter; None where no study did, or its table is not in the store."""
    run = run_found(tracking, run_id)
    parent = parent_of(tracking, run) if run else None
    table = document_of(tracking, parent.id, "trials.json") if parent else None
    if parent is None or table is None:
        return None
    runs = {child.tags.get("optuna.trial"): child.id for child in children_of(tracking, parent)}
    recipe = document_of(tracking, parent.id, "recipe.json") or {}
    rows: Sequence[Mapping[str, Any]] = table["trials"]
    points = [
        TrialPoint(
            row["trial"], row["state"], row["params"], row["score"], runs.get(str(row["trial"])), _reason(row.get("failure"))
        )
        for row in rows
    ]
    ranked = in_order(
        [
            Candidate(point.number, Path(), dict(point.params), dict(point.score), point.run_id)
            for point in points
            if point.state == "COMPLETE" and point.score and not is_partial(dict(point.score))
        ]
    )
    domain, missing = str(recipe.get("domain", "")), table.get("not_measurable", {})
    return _material(str(table["study"]), domain, parent.id, points, ranked, None, 0, missing)


def study_named_by(tracking: Tracking, run_id: str) -> tuple[str, int | None] | None:
    """The name of the study that a run belongs to, and its trial; None where it belongs to none."""
    run = run_found(tracking, run_id)
    if run is None or "optuna.study" not in run.tags:
        return None
    trial = run.tags.get("optuna.trial", "")
    return run.tags["optuna.study"], int(trial) if trial.isdigit() else None


def recipe_domain(recipe: Recipe | Mapping[str, Any]) -> str:
    """The name of the domain's task; as the recipe writes it where its file is not here."""
    from evaluation.tasks import task_named

    named = recipe.domain if isinstance(recipe, Recipe) else str(recipe.get("domain", ""))
    try:
        return task_named(named).name
    except (ValueError, OSError):
        return named


def _material(
    name: str,
    domain: str,
    run_id: str | None,
    points: Sequence[TrialPoint],
    ranked: Sequence[Candidate],
    wanted: int | None,
    running: int,
    not_measurable: Mapping[str, str],
) -> StudyMaterial:
    order, best = tuple(one.trial for one in ranked), tuple(one.trial for one in front(ranked))
    return StudyMaterial(name, domain, run_id, tuple(points), order, best, wanted, running, dict(not_measurable))


def _reason(failure: object) -> str:
    lines = str(failure or "").strip().splitlines()
    return lines[-1] if lines else ""
