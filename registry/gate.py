"""The gate: draws items in rounds until a release is shown to have gained its domain and kept its reasoning, or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
from pydantic import JsonValue

from registry.evidence import Evidence
from registry.gate_report import POOLED, POOLED_SHARES, FamilyVerdict, GateReport, Role, Stopped, Verdict
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems, log_wealth, lower_bound, units_needed, upper_bound

Draw = Callable[[int, frozenset[str]], Mapping[str, PairedItems]]
"""The round's index (0, 1, ...) and the names that need no more to fresh items by name; a name without items may be missing."""


def run_gate(
    settings: GateSettings,
    draw_round: Draw,
    clock: Callable[[], float] = time.monotonic,
    *,
    domain: str,
    subject: str,
    written: str | None = None,
    not_measurable: Mapping[str, str] | None = None,
    details: Mapping[str, JsonValue] | None = None,
    on_round: Callable[[GateReport], None] | None = None,
    before: Evidence | None = None,
) -> GateReport:
    """Non-inferiority of every protected family, superiority of the domain, all to be shown: pass, fail or inconclusive.

    All names of a round but `domain` are protected families; `written`, the domain's written answers under a decoding policy
    paired with those without it, has a margin as they have. Every test must pass, so none needs a smaller alpha for the
    others; a claim of harm does, and gets it. Unless what was drawn `before` decides, one round is drawn, and a later one only
    if one like the last still fits into the time budget, and only for tests that are still open. `on_round` is told how things
    stand. With `before`, the gate goes on from that evidence: its rounds are numbered on, its items count, and the limits are
    for what comes now; the report then carries the evidence that the next gate can go on from.
    """
    started, last_s = clock(), 0.0
    rounds = rounds_before = before.rounds if before else 0
    drawn: dict[str, PairedItems] = dict(before.items) if before else {}

    def report(stopped: Stopped) -> GateReport:
        tests = judge(settings, drawn, domain, written)
        return GateReport(
            subject=subject,
            verdict=_overall(tests),
            settings=settings,
            tests=tests,
            not_measurable=dict(not_measurable or {}),
            rounds=rounds,
            rounds_before=rounds_before,
            elapsed_s=clock() - started,
            stopped=stopped,
            details=dict(details or {}),
            evidence=Evidence(before.start, rounds, dict(drawn)) if before else None,
        )

    settled: frozenset[str] = frozenset()
    if drawn:
        so_far = report("decided")
        if so_far.verdict != "inconclusive":
            return so_far
        settled = settled_names(so_far.tests)
    while True:
        began = clock()
        fresh = {name: items for name, items in draw_round(rounds, settled).items() if len(items)}
        rounds += 1
        if domain not in drawn and domain not in fresh:
            raise ValueError(f"The gate's first round must hold items of the domain {domain!r}, but has {sorted(fresh)}.")
        if not fresh:
            return report("out of items")
        drawn.update({name: drawn[name].joined(items) if name in drawn else items for name, items in fresh.items()})
        last_s = clock() - began
        so_far = report("decided")
        settled = settled_names(so_far.tests)
        if on_round is not None:
            on_round(so_far)
        if so_far.verdict != "inconclusive":
            return so_far
        if rounds - rounds_before >= settings.max_rounds:
            return so_far.model_copy(update={"stopped": "out of rounds"})
        if clock() - started + last_s > settings.time_budget_s:
            return so_far.model_copy(update={"stopped": "out of time"})


def settled_names(tests: Sequence[FamilyVerdict]) -> frozenset[str]:
    """Names whose tests have passed, so that a round need not draw them; families are drawn on while their pool is open.

    A pass would stay valid if it were never looked at again (Ville). While the pool is open its family draws on and is judged
    anew, so that the table tells what was seen: that can take a pass away, and never gives one too many.
    """
    pool_open = any(test.role == "pooled" and test.verdict != "pass" for test in tests)
    return frozenset(test.name for test in tests if test.verdict == "pass" and not (test.role == "protected" and pool_open))


def judge(
    settings: GateSettings, drawn: Mapping[str, PairedItems], domain: str, written: str | None = None
) -> tuple[FamilyVerdict, ...]:
    """Every test on the items drawn so far: the domain, what is written of it, each protected family, and all shares pooled."""
    protected = {name: items for name, items in drawn.items() if name not in (domain, written)}
    shares = {name: items for name, items in protected.items() if not settings.is_nats(name)}
    pooled = settings.pooled_margin is not None and bool(shares)
    harm_alpha = settings.candidate_alpha / (len(drawn) + pooled)

    def test(name: str, role: Role, strata: Mapping[str, PairedItems], threshold: float, span: float) -> FamilyVerdict:
        # Units keep to their stratum: a cluster of one family never joins a cluster of another by its name.
        named = strata if len(strata) == 1 else {stratum: _prefixed(stratum, items) for stratum, items in strata.items()}
        items = reduce(PairedItems.joined, named.values())
        units = np.concatenate([part.units for part in named.values()])
        base = np.concatenate([part.by_unit(part.base) for part in named.values()])
        alpha = settings.candidate_alpha
        verdict: Verdict = "inconclusive"
        if log_wealth(units, threshold, span) >= -math.log(alpha):
            verdict = "pass"
        elif log_wealth(-units, -threshold, span) >= -math.log(harm_alpha):
            verdict = "fail"
        more = units_needed(units, threshold, alpha, span)
        worst, change = min(items.cluster_means.items(), key=lambda entry: entry[1])
        return FamilyVerdict(
            name=name,
            role=role,
            verdict=verdict,
            base_mean=float(base.mean()),
            adapted_mean=float(base.mean() + units.mean()),
            change=float(units.mean()),
            lower=lower_bound(units, alpha, span),
            upper=upper_bound(units, alpha, span),
            threshold=threshold,
            stderr=float(units.std(ddof=1) / math.sqrt(len(units))) if len(units) > 1 else None,
            num_items=len(items),
            num_units=len(units),
            items_needed=None if more is None else math.ceil(more * len(items) / len(units)),
            worst_cluster=worst if change < 0 else None,
            worst_change=change if change < 0 else None,
        )

    tests = [test(domain, "domain", {domain: drawn[domain]}, settings.min_domain_gain, settings.span_of(domain))]
    if written is not None and written in drawn:
        tests.append(test(written, "written", {written: drawn[written]}, -settings.margin_of(written), 1.0))
    for name, items in protected.items():
        tests.append(test(name, "protected", {name: items}, -settings.margin_of(name), settings.span_of(name)))
    if settings.pooled_margin is not None and shares:
        name = POOLED if len(shares) == len(protected) else POOLED_SHARES
        tests.append(test(name, "pooled", shares, -settings.pooled_margin, 1.0))
    return tuple(tests)


def _overall(tests: tuple[FamilyVerdict, ...]) -> Verdict:
    verdicts = {test.verdict for test in tests}
    if "fail" in verdicts:
        return "fail"
    measurable = any(test.role == "protected" for test in tests)
    return "pass" if verdicts == {"pass"} and measurable else "inconclusive"


def _prefixed(name: str, items: PairedItems) -> PairedItems:
    return PairedItems(items.base, items.adapted, tuple(f"{name}: {cluster}" for cluster in items.clusters), items.fixed_clusters)
