"""Brings a release before the gate: fresh items for the domain and every protected family, backbone and adapter side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from adapters.backbone import Backbone
from engine.engine import Engine
from engine.profile import Profile
from engine.twin import Precision
from evaluation.admission import admissions
from evaluation.cap_curve import AboveCap
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.retention import gate_measure
from evaluation.task import Task
from evaluation.tasks import task_named
from evaluation.tasks.definition import check_unchanged
from registry.evidence import Evidence, begun
from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.manifest import Manifest, TrainingHashes
from registry.policy import Policy, refuse_other_domain
from tuning.compression_gate import DomainTest, check_steering
from tuning.errors import BadRecipe
from tuning.faults import in_one_sentence
from tuning.manifest import fingerprints_of
from tuning.recipe import Recipe
from tuning.rounds import LEAST_POOL, PER_GROUP, POOL_ROUNDS, Reading, Rounds, is_endless, name_of

# The largest change of an item's mean log-probability that the gate counts, in nats per token: a passage whose perplexity
# rose by 28 % is lost, and lost no more by 60 %. What n units that changed nothing can show is a share of this span: `text`
# has 37 documents in the gate split, enough for the default nats_margin (a mean loss of 0.05, 5 % of the perplexity, a fifth
# of the span) with one of three candidates' alpha.
MAX_NATS = 0.25
GATED = "gated"  # the name under which the engine holds the adapter that is looked at
UNPOLICED = "gated without its policy"


@dataclass(frozen=True)
class Subject:
    """What is gated: a name for the report, the files, and what the manifest says of them."""

    name: str
    directory: Path
    manifest: Manifest

    @property
    def eps(self) -> float | None:
        """The bound of the KL that a vector without a record of its own was made under."""
        found = self.manifest.derived.get("eps")
        return float(found) if isinstance(found, int | float) else None

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


def gate_settings(asked: Recipe | Policy, num_candidates: int = 1, time_budget_s: float | None = None) -> GateSettings:
    """What the name's policy asks for, or the recipe where there is none yet."""
    policy = recipe_policy(asked) if isinstance(asked, Recipe) else asked
    measures = {task.name: gate_measure(task) for task in map(task_named, policy.protected)}
    return GateSettings(
        margin=policy.margin,
        nats_margin=policy.nats_margin,
        margins=policy.margins,
        pooled_margin=policy.pooled_margin,
        min_domain_gain=policy.min_domain_gain,
        alpha=policy.alpha,
        num_candidates=num_candidates,
        time_budget_s=policy.time_budget_s if time_budget_s is None else time_budget_s,
        round_items=policy.round_items,
        max_rounds=policy.max_rounds,
        spans={name: MAX_NATS for name, measure in measures.items() if not measure.unit.startswith("share")},
    )


def recipe_policy(recipe: Recipe) -> Policy:
    domain = task_named(recipe.domain).name
    return Policy(domain=domain, protected=recipe.protected, **recipe.gate.model_dump(exclude={"candidates"}))


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
    begin: Callable[[str], Evidence] | None = None,
    kept: Path | None = None,
    on_share: Callable[[float], None] | None = None,
) -> GateReport:
    """Runs the gate on items of the gate split that nothing else reads. The seed is drawn anew unless it is given.

    `policy` is the name's; the recipe's own where none is given. `earlier` is what the release's last gate drew: under the same
    conditions this one goes on from there, else it starts afresh with less alpha. In place of both, `begin` makes the start out
    of the conditions, before anything is drawn. Every part of a round that was read is kept in the file `kept`, from which a gate
    of the same start goes on after a kill. `on_share` is told how much of the round is read.
    """
    recipe = subject.recipe
    policy = policy or recipe_policy(recipe)
    profile = Profile.load(subject.directory)
    asked = DomainTest.of(recipe, task_named(recipe.domain), profile)
    domain = asked.task
    refuse_other_domain(domain.name, policy, subject.name)
    check_tasks(subject.manifest, subject.name)
    check_steering(profile, recipe, engine, backbone, task_named(recipe.domain), subject.name, subject.eps)
    measured, left_out = _measurable(policy, engine, backbone, cache, recipe.evaluation.precision)
    conditions = _conditions(backbone, recipe, asked, measured, policy.domain_items, settings.round_items)
    training = fingerprints_of(TrainingHashes.read(subject.directory))

    def rounds(fresh_seed: int) -> list[Rounds]:
        asked_of = Rounds(domain, policy.domain_items, fresh_seed, training)
        return [asked_of, *(Rounds(task, settings.round_items, fresh_seed, training) for task in measured.values())]

    rounds(0)  # what repeats a training row stops the gate before it takes a share of alpha
    before = begin(conditions) if begin is not None else begun(earlier, conditions, settings, seed)
    if kept is not None:
        before = before.or_kept(kept)
        before.keep(kept)
    settings, fresh_seed = before.start.applied_to(settings), before.start.seed
    asked_of, *families = rounds(fresh_seed)

    def read(plan: Sequence[Planned], on_progress: Callable[[float], None]) -> Mapping[str, PairedItems]:
        done, found = count(1), dict[str, PairedItems]()
        for beside in (None, UNPOLICED):
            part = [planned for planned in plan if (planned.role == "written") == (beside is not None)]
            told = partial(_told, on_progress, done, 2 * len(plan))
            rows = evaluate(engine, backbone, GATED, part, on_read=told, beside=beside).rows
            found |= {name_of(row.planned): _paired(row) for row in rows}
        return found

    written = None if asked.written is None else Planned(asked.written, domain, (), "written")
    reading = Reading(before.start, read, kept, on_share or (lambda share: None))

    def draw_round(number: int, settled: frozenset[str]) -> Mapping[str, PairedItems]:
        plan = []
        if domain.name not in settled:
            plan.append(Planned(asked.measure, domain, asked_of.items(number), "domain"))
        if written is not None and name_of(written) not in settled:
            plan.append(replace(written, examples=asked_of.items(number)))
        for drawn in families:
            if drawn.task.name not in settled:
                plan.append(Planned(gate_measure(drawn.task), drawn.task, drawn.items(number), "protected"))
        return reading.round(number, [planned for planned in plan if planned.examples])

    def keep(report: GateReport) -> None:
        if kept is not None and report.evidence is not None:
            report.evidence.keep(kept)
        if on_round is not None:
            on_round(report)

    loaded = {GATED: profile} | ({UNPOLICED: replace(profile, policy=profile.policy.off)} if written is not None else {})
    with ExitStack() as held:
        for name, one in loaded.items():
            engine.load(name, one)
            held.callback(engine.unload, name)
        return run_gate(
            settings,
            draw_round,
            domain=domain.name,
            subject=subject.name,
            written=None if written is None else name_of(written),
            not_measurable=left_out,
            details={
                "seed": fresh_seed,
                "backbone_fingerprint": backbone.fingerprint,
                "backbone_format": backbone.format,
                "precision": recipe.evaluation.precision,
                "split": "gate",
                "policy": policy.digest(),
                "contamination": 0,  # an item that repeats a training row is not drawn, or stops the gate
            },
            on_round=keep,
            before=before,
        )


def _told(on_progress: Callable[[float], None], done: Iterator[int], total: int, planned: Planned) -> None:
    on_progress(next(done) / total)


def _conditions(
    backbone: Backbone, recipe: Recipe, asked: DomainTest, measured: Mapping[str, Task], domain_items: int, round_items: int
) -> str:
    """SHA-256 of all that decides which items a seed draws and what their values are."""
    domain, first = asked.task, asked.task.examples("gate", domain_items)
    measures = {name: gate_measure(task) for name, task in sorted(measured.items())}
    identity = [
        backbone.fingerprint,
        backbone.numbers,
        recipe.evaluation.precision,
        [domain.name, asked.measure.name, asked.measure.version, domain_items, PER_GROUP, POOL_ROUNDS, LEAST_POOL],
        *([] if asked.written is None else [[asked.written.name, asked.written.version]]),
        [[example.question, example.answer, example.choices, example.listed] for example in first],
        [
            [name, measure.name, measure.version, MAX_NATS, round_items, is_endless(measured[name])]
            for name, measure in measures.items()
        ],
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
    measure, base, adapted = row.planned.measure, np.array(row.base.values), np.array(row.adapted.values)
    if isinstance(measure, AboveCap):
        base = np.array(measure.against(row.base, row.adapted))
    if not row.planned.measure.unit.startswith("share"):
        # A likelihood has no bound, and the gate's test needs one: larger changes count as this large.
        adapted = base + np.clip(adapted - base, -MAX_NATS, MAX_NATS)
    return PairedItems.of(base, adapted, row.base.clusters, fixed_clusters=is_endless(row.planned.task))
