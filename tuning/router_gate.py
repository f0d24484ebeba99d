"""The gate of a router: what is sent by it gains the domains, loses little against asking by name, and keeps the reasoning.

Three kinds of tests, on items of the gate split: all domains together, routed against the backbone, must gain; each domain,
routed against its own adapter, must lose less than the margin; each protected family, routed against the backbone, likewise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from adapters.adapter_router import FILE, WEIGHTS
from adapters.backbone import Backbone
from engine.inspect import Inspector
from engine.routed_engine import RoutedEngine
from evaluation.admission import admissions
from evaluation.evaluate import Planned, Row, evaluate
from evaluation.measures import MEASURES
from evaluation.overlap import Fingerprints
from evaluation.retention import gate_measure
from evaluation.task import Split, Task
from evaluation.tasks import task_named
from registry.evidence import Evidence, begun
from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.manifest import TrainingHashes
from registry.policy import Policy
from tuning.manifest import fingerprints_of
from tuning.plan import DOMAIN_MEASURE
from tuning.recipe import GateRecipe
from tuning.rounds import Rounds, is_endless

ROUTED = "routed"  # the name that the router answers under
DOMAINS = "every routed domain"


@dataclass(frozen=True)
class Target:
    """One of the router's names: the release that answers for it, the domain and the rows that it was fitted to."""

    name: str
    release: str  # NAME@VERSION
    profile: str  # the name under which the engine holds it
    domain: Task
    training: Fingerprints


def measured(
    engine: Inspector,
    routed: RoutedEngine,
    backbone: Backbone,
    targets: Sequence[Target],
    protected: Sequence[Task],
    items: int,
    split: Split = "select",
) -> tuple[list[tuple[Target, Row, Row]], list[Row]]:
    """Of each target's domain its own adapter's row and the routed one, and the routed row of each protected family."""
    domains = []
    for target in targets:
        plan = [Planned(MEASURES[DOMAIN_MEASURE], target.domain, target.domain.examples(split, items), "domain")]
        (own,) = evaluate(engine, backbone, target.profile, plan).rows
        (sent,) = evaluate(routed, backbone, ROUTED, plan).rows
        domains.append((target, own, sent))
    plan = [Planned(gate_measure(task), task, task.examples(split, items), "protected") for task in protected]
    return domains, list(evaluate(routed, backbone, ROUTED, plan).rows) if plan else []


def gate_router(
    subject: str,
    directory: Path,
    engine: Inspector,
    routed: RoutedEngine,
    backbone: Backbone,
    targets: Sequence[Target],
    protected: Sequence[str],
    settings: GateSettings,
    cache: Path,
    *,
    begin: Callable[[str], Evidence] | None = None,
    on_round: Callable[[GateReport], None] | None = None,
    seed: int | None = None,
) -> GateReport:
    """Runs the gate of a router's directory; an undecided one is continued where `begin` gives what it drew."""
    tasks = {task.name: task for task in map(task_named, protected)}
    found = admissions(engine, backbone, list(tasks.values()), cache)
    families = {name: task for name, task in tasks.items() if found[name].admitted}
    left_out = {name: "; ".join(found[name].reasons) for name in tasks if name not in families}
    # What a release was fitted on tells as little about it through a router as it does alone.
    fitted_on = (fingerprints_of(TrainingHashes.read(directory)), *(target.training for target in targets))
    training = reduce(Fingerprints.joined, fitted_on)
    conditions = _conditions(directory, backbone, targets, families, settings)
    before = begin(conditions) if begin is not None else begun(None, conditions, settings, seed)
    settings, fresh_seed = before.start.applied_to(settings), before.start.seed
    drawn = {task.name: Rounds(task, settings.round_items, fresh_seed, training) for task in families.values()}
    asked = {target.name: Rounds(target.domain, settings.round_items, fresh_seed, training) for target in targets}

    def draw_round(number: int, settled: frozenset[str]) -> Mapping[str, PairedItems]:
        items: dict[str, PairedItems] = {}
        gained = []
        for target in targets:
            examples = asked[target.name].items(number)
            if not examples:
                continue
            plan = [Planned(MEASURES[DOMAIN_MEASURE], target.domain, examples, "domain")]
            (own,) = evaluate(engine, backbone, target.profile, plan).rows
            (sent,) = evaluate(routed, backbone, ROUTED, plan).rows
            # Units keep to their domain: a category of one never joins one of another by its name.
            clusters = [f"{target.name}: {cluster}" for cluster in sent.base.clusters]
            fixed = is_endless(target.domain)
            gained.append(PairedItems.of(sent.base.values, sent.adapted.values, clusters, fixed_clusters=fixed))
            against = PairedItems.of(own.adapted.values, sent.adapted.values, clusters, fixed_clusters=fixed)
            items[f"{target.name}, against asking for it"] = against
        if gained:
            items[DOMAINS] = reduce(PairedItems.joined, gained)
        for name, rounds in drawn.items():
            examples = [] if name in settled else rounds.items(number)
            if examples:
                plan = [Planned(gate_measure(families[name]), families[name], examples, "protected")]
                (row,) = evaluate(routed, backbone, ROUTED, plan).rows
                items[name] = _paired(row, settings)
        return items

    report = run_gate(
        settings,
        draw_round,
        domain=DOMAINS,
        subject=subject,
        not_measurable=left_out,
        details={
            "seed": fresh_seed,
            "backbone_fingerprint": backbone.fingerprint,
            "split": "gate",
            "targets": {target.name: target.release for target in targets},
            "contamination": 0,  # an item that repeats a row of the router's or a release's fit is not drawn, or stops the gate
        },
        on_round=on_round,
        before=before,
    )
    # The tests against asking by name are none of what the backbone can do: without a family nothing of it was shown to be kept.
    return report if families or not report.passed else report.model_copy(update={"verdict": "inconclusive"})


def _paired(row: Row, settings: GateSettings) -> PairedItems:
    base, adapted = np.array(row.base.values), np.array(row.adapted.values)
    name = row.planned.task.name
    if settings.is_nats(name):
        # A likelihood has no bound, and the gate's test needs one: larger changes count as this large.
        adapted = base + np.clip(adapted - base, -settings.span_of(name), settings.span_of(name))
    return PairedItems.of(base, adapted, row.base.clusters, fixed_clusters=is_endless(row.planned.task))


def _conditions(
    directory: Path, backbone: Backbone, targets: Sequence[Target], families: Mapping[str, Task], settings: GateSettings
) -> str:
    """SHA-256 of all that decides which items a seed draws and what their values are."""
    identity = [
        backbone.fingerprint,
        backbone.numbers,
        # With the file of the threshold: a router that is fitted again for another share astray has the same weights.
        [hashlib.sha256((directory / file).read_bytes()).hexdigest() for file in (FILE, WEIGHTS)],
        [[target.name, target.release, target.domain.name] for target in targets],
        [[name, gate_measure(task).name, gate_measure(task).version] for name, task in sorted(families.items())],
        settings.round_items,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def router_policy(protected: Sequence[str]) -> Policy:
    """What a router's gate asks until its name has a policy: as of any name, and no one domain binds it."""
    return Policy(protected=tuple(protected), **GateRecipe().model_dump(exclude={"candidates"}))
