"""Brings a release before the gate: fresh items for the domain and every protected family, backbone and adapter side by side."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.profile import Profile
from evaluation.admission import admissions
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.overlap import check_overlap
from evaluation.retention import gate_measure
from evaluation.task import Task
from evaluation.tasks import task_named
from evaluation.tasks.generated import GeneratedTask
from registry.gate import run_gate
from registry.gate_report import GateReport, GateSettings
from registry.gate_statistics import PairedItems
from registry.manifest import Manifest, TrainingHashes
from tuning.manifest import fingerprints_of
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe

MAX_NATS = 0.5  # the largest change of an item's mean log-probability that the gate counts, in nats per token
GATED = "gated"  # the name under which the engine holds the adapter that is looked at


@dataclass(frozen=True)
class Subject:
    """What is gated: a name for the report, the files, and what the manifest says of them."""

    name: str
    directory: Path
    manifest: Manifest

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.manifest.recipe)


def gate_settings(
    recipe: Recipe, num_candidates: int = 1, time_budget_s: float | None = None, stop_when_futile: bool = False
) -> GateSettings:
    gate = recipe.gate
    return GateSettings(
        margin=gate.margin,
        pooled_margin=gate.pooled_margin,
        alpha=gate.alpha,
        num_candidates=num_candidates,
        time_budget_s=time_budget_s or gate.time_budget_s,
        round_items=gate.round_items,
        max_rounds=gate.max_rounds,
        stop_when_futile=stop_when_futile,
        spans={
            task.name: MAX_NATS for task in map(task_named, recipe.protected) if not gate_measure(task).unit.startswith("share")
        },
    )


def gate(
    subject: Subject,
    engine: Engine,
    backbone: Backbone,
    settings: GateSettings,
    cache: Path,
    on_round: Callable[[GateReport], None] | None = None,
    seed: int | None = None,
) -> GateReport:
    """Runs the gate on items of the gate split that nothing else reads. The seed is drawn anew unless it is given."""
    recipe, fresh_seed = subject.recipe, secrets.randbits(31) if seed is None else seed
    domain = task_named(recipe.domain)
    measured, left_out = _measurable(recipe, engine, backbone, cache)
    hashes = fingerprints_of(TrainingHashes.read(subject.directory))
    pool = domain.examples("gate", recipe.gate.domain_items * settings.max_rounds, seed=fresh_seed)
    check_overlap(hashes, pool)

    def draw_round(number: int) -> Mapping[str, PairedItems]:
        size = recipe.gate.domain_items
        plan = [Planned(MEASURES[DOMAIN_MEASURE], domain, pool[number * size : (number + 1) * size], "domain")]
        for task in measured.values():
            # Seeds of rounds lie far apart, and a question that came before is left out.
            drawn = task.examples("gate", settings.round_items, seed=fresh_seed + 1_000_003 * number)
            examples = [example for example in drawn if example.question not in asked]
            asked.update(example.question for example in examples)
            plan.append(Planned(gate_measure(task), task, examples, "protected"))
        read = evaluate(engine, backbone, GATED, [planned for planned in plan if planned.examples])
        return {row.planned.task.name: _paired(row) for row in read.rows}

    asked: set[str] = set()
    engine.load(GATED, Profile.load(subject.directory))
    try:
        return run_gate(
            settings,
            draw_round,
            domain=domain.name,
            subject=subject.name,
            not_measurable=left_out,
            details={"seed": fresh_seed, "backbone_fingerprint": backbone.fingerprint, "split": "gate"},
            on_round=on_round,
        )
    finally:
        engine.unload(GATED)


def _measurable(recipe: Recipe, engine: Engine, backbone: Backbone, cache: Path) -> tuple[dict[str, Task], dict[str, str]]:
    """The protected families that this backbone can show a loss on, and why not for the others."""
    tasks = {task.name: task for task in map(task_named, recipe.protected)}
    found = admissions(engine, backbone, list(tasks.values()), cache)
    admitted = {name: task for name, task in tasks.items() if found[name].admitted}
    return admitted, {name: "; ".join(found[name].reasons) for name in tasks if name not in admitted}


def _paired(row: Row) -> PairedItems:
    base, adapted = np.array(row.base.values), np.array(row.adapted.values)
    if not row.planned.measure.unit.startswith("share"):
        # A likelihood has no bound, and the gate's test needs one: larger changes count as this large.
        adapted = base + np.clip(adapted - base, -MAX_NATS, MAX_NATS)
    return PairedItems.of(base, adapted, row.base.clusters, fixed_clusters=isinstance(row.planned.task, GeneratedTask))
