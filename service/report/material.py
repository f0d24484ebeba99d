"""What a report is made of: stored values alone, each with the run that it comes from. Nothing here is computed by a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.gate_report import GateReport
from registry.manifest import Manifest

Row = Mapping[str, Any]  # of an evaluation, as `graftline evaluate --json` tells it, with `parts` by item


@dataclass(frozen=True)
class TrialPoint:
    """`score` is as tuning.objective.TrialScore tells it; None where the trial has none."""

    number: int
    state: str
    params: Mapping[str, Any]
    score: Mapping[str, Any] | None
    run_id: str | None
    failure: str = ""

    @property
    def gain(self) -> float:
        assert self.score is not None
        return float(self.score["chosen"]["domain_gain"])

    @property
    def retention(self) -> float:
        assert self.score is not None
        return float(self.score["retention"])

    @property
    def is_feasible(self) -> bool:
        return self.score is not None and bool(self.score["feasible"])


@dataclass(frozen=True)
class StudyMaterial:
    """`ranked`: the finished trials in the order in which they are gated, and `front` those that no other beats."""

    name: str
    domain: str
    run_id: str | None
    trials: tuple[TrialPoint, ...]
    ranked: tuple[int, ...]
    front: tuple[int, ...]
    wanted: int | None  # finished trials; None where only its run is known
    running: int
    not_measurable: Mapping[str, str]

    def trial(self, number: int) -> TrialPoint:
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def chosen(self) -> TrialPoint | None:
        return self.trial(self.ranked[0]) if self.ranked else None

    @property
    def num_finished(self) -> int:
        return sum(trial.state in ("COMPLETE", "PRUNED") for trial in self.trials)


@dataclass(frozen=True)
class ReleaseMaterial:
    """`warnings` are the registry's sentences on the name; `standing` says whether it is served, and since when and why."""

    name: str
    version: int
    manifest: Manifest
    run_id: str | None  # of the fit
    trial: int | None  # of its study
    gate: GateReport | None
    gate_run: str | None
    standing: str
    warnings: tuple[str, ...]

    @property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def is_router(self) -> bool:
        """Whether it sends prompts to other releases, and has no adapter of its own."""
        return "router" in self.manifest.derived


@dataclass(frozen=True)
class Evaluated:
    """One row of a stored evaluation."""

    row: Row
    run_id: str
    backbone: str

    @property
    def task(self) -> str:
        return str(self.row["task"])

    @property
    def measure(self) -> str:
        return str(self.row["measure"])

    @property
    def is_measurable(self) -> bool:
        return not self.row["not_measurable"] and self.row["change"] is not None


@dataclass(frozen=True)
class Traces:
    document: Mapping[str, Any]
    run_id: str


@dataclass(frozen=True)
class Matrix:
    """`told` is as evaluation.continual tells a matrix; `source` says in words where it comes from."""

    title: str
    source: str
    told: Mapping[str, Any]
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Influences:
    """`told` is as tuning.attribution tells it; `source` is its folder in the home."""

    source: str
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """`measured_as` is what `graftline evaluate` can measure: the release, or the directory of the chosen trial."""

    subject: str
    study: StudyMaterial | None
    release: ReleaseMaterial | None
    measured_as: str | None
    domain: str
    evaluated: tuple[Evaluated, ...] = ()
    traces: Traces | None = None
    matrices: tuple[Matrix, ...] = ()
    no_matrix: str = ""  # why there is none though several stages are known
    influences: Influences | None = None

    def rows(self, measure: str) -> list[Evaluated]:
        """Of a measure, the domain's first, in the order in which they were read."""
        found = [one for one in self.evaluated if one.measure == measure]
        return sorted(found, key=lambda one: one.task != self.domain)

    @property
    def gate(self) -> GateReport | None:
        return self.release.gate if self.release else None

    def run_ids(self) -> Sequence[str]:
        """Every run that a number of the page comes from, once."""
        found: list[str | None] = []
        if self.release:
            found += [self.release.run_id, self.release.gate_run]
        if self.study:
            found += [self.study.run_id, *(trial.run_id for trial in self.study.trials)]
        found += [one.run_id for one in self.evaluated]
        found += [self.traces.run_id] if self.traces else []
        found += [run_id for matrix in self.matrices for run_id in matrix.run_ids]
        return list(dict.fromkeys(run_id for run_id in found if run_id))
