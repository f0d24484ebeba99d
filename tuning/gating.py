"""Brings a release before the gate: fresh items for the domain and every protected family, backbone and adapter side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.profile import Profile
from engine.twin import Precision
from evaluation.admission import admissions
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.overlap import check_overlap
from evaluation.retention import gate_measure
from evaluation.task import Example, Task
from evaluation.tasks import task_named
from evaluation.tasks.definition import check_unchanged
from evaluation.tasks.generated import GeneratedTask
from registry.evidence import Evidence, Start, begun
from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.manifest import Manifest, TrainingHashes
from registry.policy import Policy
from tuning.errors import BadRecipe
from tuning.manifest import fingerprints_of
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import Recipe, in_one_sentence

PER_GROUP = 3  # items of the domain's groups (a category, a passage) that one unit of evidence is the mean of
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
        try:
            return Recipe.model_validate(self.manifest.recipe)
        except ValidationError as error:
            raise BadRecipe(
                f"A release is gated by the recipe in its manifest, but that of {self.name} is none: {in_one_sentence(error)} "
                "Fit the adapter with `graftline tune`, which writes one."
            ) from error


def check_tasks(manifest: Manifest, subject: str) -> None:
    """DataChanged when a task that the manifest defines reads something else by now."""
    definitions = manifest.task.get("definitions")
    for name, recorded in definitions.items() if isinstance(definitions, dict) else ():
        if isinstance(recorded, dict):
            check_unchanged(recorded, task_named(name), subject)


def gate_settings(
    asked: Recipe | Policy, num_candidates: int = 1, time_budget_s: float | None = None, stop_when_futile: bool = False
) -> GateSettings:
    """What the name's policy asks for, or the recipe where there is none yet."""
    policy = recipe_policy(asked) if isinstance(asked, Recipe) else asked
    measures = {task.name: gate_measure(task) for task in map(task_named, policy.protected)}
    return GateSettings(
        margin=policy.margin,
        margins=policy.margins,
        pooled_margin=policy.pooled_margin,
        min_domain_gain=policy.min_domain_gain,
        alpha=policy.alpha,
        num_candidates=num_candidates,
        time_budget_s=policy.time_budget_s if time_budget_s is None else time_budget_s,
        round_items=policy.round_items,
        max_rounds=policy.max_rounds,
        stop_when_futile=stop_when_futile,
        spans={name: MAX_NATS for name, measure in measures.items() if not measure.unit.startswith("share")},
    )


def recipe_policy(recipe: Recipe) -> Policy:
    return Policy(protected=recipe.protected, **recipe.gate.model_dump(exclude={"candidates"}))


def gate(
    subject: Subject,
    engine: Engine,
    backbone: Backbone,
    settings: GateSettings,
    cache: Path,
    on_round: Callable[[GateReport], None] | None = None,
    seed: int | None = None,
    policy: Policy | None = None,
    earlier: Evidence | None = None,
    on_start: Callable[[Start], None] | None = None,
) -> GateReport:
    """Runs the gate on items of the gate split that nothing else reads. The seed is drawn anew unless it is given.

    `policy` is the name's; the recipe's own where none is given. `earlier` is what the release's last gate drew: under the same
    conditions this one goes on from there, else it starts afresh with less alpha. `on_start` is told before anything is drawn.
    """
    recipe = subject.recipe
    policy = policy or recipe_policy(recipe)
    domain = task_named(recipe.domain)
    check_tasks(subject.manifest, subject.name)
    measured, left_out = _measurable(policy, engine, backbone, cache, recipe.evaluation.precision)
    conditions = _conditions(backbone, recipe, domain, measured, policy.domain_items, settings.round_items)
    before = begun(earlier, conditions, settings, seed)
    settings, fresh_seed, size = before.start.applied_to(settings), before.start.seed, policy.domain_items
    drawn = domain.examples("gate", size * (before.rounds + settings.max_rounds), seed=fresh_seed)
    pool = whole_groups(drawn, size)
    check_overlap(fingerprints_of(TrainingHashes.read(subject.directory)), drawn)
    asked: set[str] = set()

    def fresh(task: Task, number: int) -> list[Example]:
        # Seeds of rounds lie far apart, and a question that came before is left out.
        drawn = task.examples("gate", settings.round_items, seed=fresh_seed + 1_000_003 * number)
        examples = [example for example in drawn if example.question not in asked]
        asked.update(example.question for example in examples)
        return examples

    def draw_round(number: int) -> Mapping[str, PairedItems]:
        items = pool[number] if number < len(pool) else []
        plan = [Planned(MEASURES[DOMAIN_MEASURE], domain, items, "domain")]
        plan.extend(Planned(gate_measure(task), task, fresh(task, number), "protected") for task in measured.values())
        read = evaluate(engine, backbone, GATED, [planned for planned in plan if planned.examples])
        return {row.planned.task.name: _paired(row) for row in read.rows}

    for number in range(before.rounds):
        for task in measured.values():
            fresh(task, number)
    if on_start is not None:
        on_start(before.start)
    engine.load(GATED, Profile.load(subject.directory))
    try:
        return run_gate(
            settings,
            draw_round,
            domain=domain.name,
            subject=subject.name,
            not_measurable=left_out,
            details={
                "seed": fresh_seed,
                "backbone_fingerprint": backbone.fingerprint,
                "precision": recipe.evaluation.precision,
                "split": "gate",
                "policy": policy.digest(),
            },
            on_round=on_round,
            before=before,
        )
    finally:
        engine.unload(GATED)


def whole_groups(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Rounds of about `size` items in which no group recurs, with at most PER_GROUP items of each.

    A group's mean is one unit of evidence, and what was staked on it must not change when a later round is drawn.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    rounds: list[list[Example]] = [[]]
    for members in groups.values():
        if len(rounds[-1]) >= size:
            rounds.append([])
        rounds[-1].extend(members[:PER_GROUP])
    return rounds


def _conditions(
    backbone: Backbone, recipe: Recipe, domain: Task, measured: Mapping[str, Task], domain_items: int, round_items: int
) -> str:
    """SHA-256 of all that decides which items a seed draws and what their values are."""
    first = domain.examples("gate", domain_items)
    measures = {name: gate_measure(task) for name, task in sorted(measured.items())}
    identity = [
        backbone.fingerprint,
        str(backbone.dtype),
        recipe.evaluation.precision,
        [domain.name, DOMAIN_MEASURE, MEASURES[DOMAIN_MEASURE].version, domain_items, PER_GROUP],
        [[example.question, example.answer, example.choices, example.listed] for example in first],
        [[name, measure.name, measure.version, MAX_NATS, round_items] for name, measure in measures.items()],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _measurable(
    policy: Policy, engine: Engine, backbone: Backbone, cache: Path, precision: Precision
) -> tuple[dict[str, Task], dict[str, str]]:
    """The protected families that this backbone can show a loss on, and why not for the others."""
    tasks = {task.name: task for task in map(task_named, policy.protected)}
    found = admissions(engine, backbone, list(tasks.values()), cache, precision=precision)
    admitted = {name: task for name, task in tasks.items() if found[name].admitted}
    return admitted, {name: "; ".join(found[name].reasons) for name in tasks if name not in admitted}


def _paired(row: Row) -> PairedItems:
    base, adapted = np.array(row.base.values), np.array(row.adapted.values)
    if not row.planned.measure.unit.startswith("share"):
        # A likelihood has no bound, and the gate's test needs one: larger changes count as this large.
        adapted = base + np.clip(adapted - base, -MAX_NATS, MAX_NATS)
    return PairedItems.of(base, adapted, row.base.clusters, fixed_clusters=isinstance(row.planned.task, GeneratedTask))
