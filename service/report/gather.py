"""Gathers what is stored of a study or a release, from the home and from MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.continual import ContinualMatrix
from evaluation.errors import IncompleteMatrix
from registry.errors import NoChampion, NoRegistry, RefusedName, UnknownRelease
from registry.manifest import MANIFEST, file_digest
from registry.measurements import Measured, recorded_measured
from registry.names import ReleaseName, registered_names, resolve
from registry.release import MANIFEST_TAG
from registry.runs import published_from
from registry.tracking import Tracking
from registry.verdicts import version_tags
from service.report.errors import NothingToReport
from service.report.material import Evaluated, Influences, Material, Matrix, ReleaseMaterial, StudyMaterial, Traces
from service.report.releases import fitting_run, release_material
from service.report.studies import recipe_domain, study_named_by, study_stored, study_tracked
from tuning.standing import study_names

_SHOWN = 12


@dataclass(frozen=True)
class Place:
    """Where things are kept."""

    home: Path
    tracking: Tracking
    storage: str | None = None


@dataclass(frozen=True)
class Subject:
    """What a name means: a release, or a study with the release of one of its trials, if there is one."""

    asked: str
    release: ReleaseName | None
    study: str | None  # asked for by its name
    also_study: bool = False  # the name of a release, and of a study too


def subject_named(place: Place, asked: str, want_study: bool = False) -> Subject:
    """NAME is the champion's, else the study's; NothingToReport with what there is where it is neither."""
    known_studies = study_names(place.home, place.storage)
    if want_study:
        if asked not in known_studies:
            raise _unknown(place, asked, known_studies)
        return Subject(asked, None, asked)
    is_study, release = asked in known_studies, None
    if not place.tracking.is_missing:
        try:
            release = resolve(place.tracking, asked)
        except (UnknownRelease, RefusedName):  # a study may have a name that no release can have
            pass
        except NoChampion:
            if not is_study:
                raise
    if release is not None:
        return Subject(asked, release, None, also_study=is_study)
    if is_study:
        return Subject(asked, None, asked)
    raise _unknown(place, asked, known_studies)


def _unknown(place: Place, asked: str, studies: Sequence[str]) -> NothingToReport:
    with suppress(NoRegistry):
        models = registered_names(place.tracking.existing())
        return NothingToReport(asked, _listed(studies), _listed(models))
    return NothingToReport(asked, _listed(studies), "none yet")


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none yet"


@dataclass(frozen=True)
class Gathered:
    """`files`: the directory of the adapter that the report is about; None where there is none here."""

    material: Material
    files: Path | None


@dataclass(frozen=True)
class _Found:
    study: StudyMaterial | None = None
    release: ReleaseMaterial | None = None
    files: Path | None = None

    @property
    def measured_as(self) -> str | None:
        if self.release is not None:
            return None if self.release.is_router else self.release.full_name
        return None if self.files is None else str(self.files)


def gather(place: Place, subject: Subject) -> Gathered:
    """From what is stored; no model is loaded."""
    tracking = place.tracking
    if subject.study is not None:
        found = _of_study(place, subject.study)
    else:
        assert subject.release is not None
        found = _of_release(place, subject.release)
    release, study, files = found.release, found.study, found.files
    recipe: Mapping[str, Any] = release.manifest.recipe if release else {"domain": study.domain if study else ""}
    domain = recipe_domain(recipe)
    digest = file_digest(files / MANIFEST) if files and (files / MANIFEST).is_file() and not tracking.is_missing else None
    traces = recorded_measured(tracking, digest, "traces") if digest else []
    stages, why = _stages(tracking, ReleaseName(release.name, release.version)) if release else (None, "")
    material = Material(
        subject=subject.study or str(subject.release),
        study=study,
        release=release,
        measured_as=found.measured_as,
        domain=domain,
        evaluated=_newest(recorded_measured(tracking, digest, "evaluation") if digest else []),
        traces=Traces(traces[0].document, traces[0].run_id) if traces else None,
        matrices=(*([stages] if stages else []), *_sequences(place.home, domain, release)),
        no_matrix=why,
        influences=_influences(place.home, str(recipe.get("name") or (study.name if study else subject.asked))),
    )
    return Gathered(material, files)


def _of_study(place: Place, name: str) -> _Found:
    """With the version that was published from its best trial of which one was, else with the chosen trial's own files."""
    stored = study_stored(place.home, name, place.storage)
    if stored is None:
        raise _unknown(place, name, study_names(place.home, place.storage))
    study, candidates = stored
    if not candidates:
        return _Found(study)
    if not place.tracking.is_missing:
        runs = {candidate.run_id: candidate.trial for candidate in candidates if candidate.run_id is not None}
        published = published_from(place.tracking, runs)
        if (run := next((run for run in runs if run in published), None)) is not None:
            release, loaded = release_material(place.tracking, published[run], runs[run])
            return _Found(study, release, loaded.directory)
    directory = candidates[0].directory
    return _Found(study, None, directory if directory.is_dir() else None)


def _of_release(place: Place, named: ReleaseName) -> _Found:
    """With the study that fitted it, where one did."""
    fitting = fitting_run(place.tracking, named)
    fitted_by = study_named_by(place.tracking, fitting) if fitting else None
    release, loaded = release_material(place.tracking, named, fitted_by[1] if fitted_by else None)
    if fitting is None or fitted_by is None:
        return _Found(None, release, loaded.directory)
    stored = study_stored(place.home, fitted_by[0], place.storage)
    # A study of that name may be another one by now: only the same run is the one that fitted it.
    if stored is not None and fitting in {trial.run_id for trial in stored[0].trials}:
        return _Found(stored[0], release, loaded.directory)
    return _Found(study_tracked(place.tracking, fitting), release, loaded.directory)


def _newest(found: Sequence[Measured]) -> tuple[Evaluated, ...]:
    """Of several readings of one measure on one task, the newest, in the order of their evaluation."""
    rows: dict[tuple[str, str, str], Evaluated] = {}
    for one in found:
        for row in one.document["rows"]:
            key = (row["task"], row["measure"], row["role"])
            rows.setdefault(key, Evaluated(row, one.run_id, str(one.document["backbone"])))
    return tuple(rows.values())


def _stages(tracking: Tracking, named: ReleaseName) -> tuple[Matrix | None, str]:
    """Versions of the name up to this one that were fitted on different domains, from their stored evaluations."""
    documents, runs, domains = list[Mapping[str, Any]](), list[str](), list[str]()
    for version in range(1, named.version + 1):
        one = ReleaseName(named.name, version)
        try:
            digest = version_tags(tracking, one).get(MANIFEST_TAG)
        except UnknownRelease:
            continue
        measured = recorded_measured(tracking, digest, "evaluation") if digest else []
        by_domain = {_domain_of(found.document): found for found in reversed(measured)}
        own = next((found.document.get("fitted_on") for found in measured), None)
        if own in by_domain:
            domains.append(str(own))
            for found in sorted(by_domain.values(), key=lambda found: _domain_of(found.document) != own):
                documents.append({**found.document, "subject": str(one)})
                runs.append(found.run_id)
    if len(set(domains)) < 2:
        return None, ""
    try:
        told = ContinualMatrix.of(documents)
    except IncompleteMatrix as error:
        return None, str(error)
    return Matrix(f"versions of {named.name}", "the evaluations that are stored of them", told.as_dict(), tuple(runs)), ""


def _domain_of(document: Mapping[str, Any]) -> str:
    return next((str(row["task"]) for row in document["rows"] if row["role"] == "domain"), "")


def _sequences(home: Path, domain: str, release: ReleaseMaterial | None) -> list[Matrix]:
    """Of the newest sequence with this domain on this backbone, the first order, policy by policy."""
    files = sorted((home / "sequence").glob("*/sequence.json"), key=lambda file: (file.stat().st_mtime, str(file)), reverse=True)
    for file in files:
        told = _read(file)
        fitting = [one for one in told.get("matrices", ()) if domain in one["order"]]
        if fitting and (release is None or told.get("backbone") == release.manifest.backbone.name):
            first = [one for one in fitting if one["order"] == fitting[0]["order"]]
            source = f"`graftline sequence`: fits of the recipes in this order, not this release; stored in {file.parent}"
            return [Matrix(f"policy {one['policy']}: {' → '.join(one['order'])}", source, one) for one in first]
    return []


def _influences(home: Path, recipe: str) -> Influences | None:
    """Of several, one whose removal experiment is made, and of those the newest."""
    named = re.compile(rf"{re.escape(recipe)}-[0-9a-f]{{12}}")
    files = [file for file in (home / "attribution").glob("*/attribution.json") if named.fullmatch(file.parent.name)]
    read = [(file, told) for file in files if (told := _read(file)).get("rows")]
    if not read:
        return None
    file, told = max(read, key=lambda one: (bool(one[1].get("removal")), one[0].stat().st_mtime, str(one[0])))
    return Influences(str(file.parent), told)


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
