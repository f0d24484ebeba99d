"""What a report of tests is made of: numbers that nothing was read for, in the forms in which the real ones are stored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.continual import ContinualMatrix
from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.manifest import BackboneIdentity, Machine, Manifest, ProfileDescription
from service.report.material import (
    Evaluated,
    Influences,
    Material,
    Matrix,
    ReleaseMaterial,
    StudyMaterial,
    Traces,
    TrialPoint,
)

DOMAIN, FAMILIES = "shelves", ("boxes", "ordering")
BUDGETS = (0, 16, 64)
ITEMS = 20
MEASURES = ("choice_accuracy", "information_gain_external", "faithfulness", "budget", "brier_score")


def gate_report(subject: str = "shelves@2", lost: float = 0.0) -> GateReport:
    """`lost`: the share of the items of `boxes` that the adapter has wrong."""
    count = 300

    def draw(round_index: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [str(item) for item in range(count)]
        kept = (np.arange(count) >= lost * count).astype(float)
        gained = PairedItems.of(np.zeros(count), (np.arange(count) % 3 > 0).astype(float), names)
        same = PairedItems.of(np.ones(count), np.ones(count), names)
        return {DOMAIN: gained, "boxes": PairedItems.of(np.ones(count), kept, names), "ordering": same}

    return run_gate(GateSettings(max_rounds=1), draw, domain=DOMAIN, subject=subject)


def manifest(name: str = DOMAIN) -> Manifest:
    return Manifest(
        backbone=BackboneIdentity(name="tiny", fingerprint="f" * 64, dtype="float32"),
        profile=ProfileDescription(adapters=("lora",), scale=0.5),
        recipe={"name": name, "domain": name},
        task={"name": name},
        data_digests={"train": "d" * 64},
        lock_digest="0" * 64,
        seeds={"fit": 7},
        training_hashes="e" * 64,
        fitted_on=Machine(cpu="a processor", instructions="AVX2", device="cpu", threads=2, packages={"torch": "2.13.0"}),
    )


def trial(number: int, gain: float, retention: float, feasible: bool = True) -> TrialPoint:
    score = {
        "chosen": {"domain_gain": gain, "gain_stderr": 0.04, "scale": 0.5, "chain_changes": dict.fromkeys(FAMILIES, -0.0123)},
        "retention": retention,
        "constraints": dict.fromkeys(FAMILIES, -0.5 if feasible else 2.0),
        "generated_changes": dict.fromkeys(FAMILIES, 0.0),
        "feasible": feasible,
    }
    return TrialPoint(number, "COMPLETE", {"adapter.kind": "lora", "method.learning_rate": 3e-4}, score, f"{number:x}" * 32)


def study(name: str = DOMAIN, trials: Sequence[TrialPoint] | None = None, running: int = 0) -> StudyMaterial:
    ended = TrialPoint(3, "PRUNED", {}, None, None, "the loss is not finite")
    points = (trial(0, 0.3, -12.5, False), trial(1, 0.12, -0.1), trial(2, 0.08, -0.01)) if trials is None else tuple(trials)
    ranked, front = ((1, 2, 0), (1, 2)) if trials is None else ((), ())
    return StudyMaterial(name, DOMAIN, "5" * 32, (*points, ended), ranked, front, 5, running, {"kinship": "at chance"})


def release(gate: GateReport | None, name: str = DOMAIN) -> ReleaseMaterial:
    standing = "champion, promoted by someone, 2026-01-01T00:00:00+00:00"
    return ReleaseMaterial(name, 2, manifest(name), "1" * 32, 1, gate, "9" * 32 if gate else None, standing, ())


def row(task: str, measure: str, role: str = "report", **changes: Any) -> dict[str, Any]:
    """As `graftline evaluate` stores it; every number is drawn, and the same for the same names."""
    draw = random.Random(f"{task}/{measure}")
    base, adapted = draw.uniform(0.5, 0.9), draw.uniform(0.2, 0.9)
    sides = {side: draw.uniform(0.1, 0.9) for side in ("base", "adapted")}
    told: dict[str, Any] = {
        "task": task,
        "measure": measure,
        "role": role,
        "unit": "share right",
        "not_measurable": None,
        "base": base,
        "adapted": adapted,
        "change": adapted - base,
        "low": adapted - base - 0.1,
        "high": adapted - base + 0.1,
        "n": ITEMS,
        "smallest_detectable": 0.2,
        "chance": None,
        "items": {"ids": [f"{task}-{place}" for place in range(ITEMS)]},
        "summary": {
            "length_ratio": 0.9,
            "change_l_0_low": 0.1,
            "change_l_t_high": 0.2,
            "base_peak": 32.0,
            "base_temperature": 1.3,
        },
        "parts": {
            side: {
                "confidence": [draw.random() for _ in range(ITEMS)],
                "right": [float(draw.random() < share) for _ in range(ITEMS)],
            }
            for side, share in sides.items()
        },
    }
    for side in ("base", "adapted"):
        at = {f"right_at_{tokens}": draw.random() for tokens in BUDGETS}
        told[f"{side}_parts"] = {"l_0": -2.0, "l_t": -0.5, "informative": 0.5, "early": 0.7, "paraphrase": 0.1, **at}
    return told | changes


def evaluated() -> tuple[Evaluated, ...]:
    rows = [row(DOMAIN, "choice_accuracy", "domain"), *(row(family, "generation", "protected") for family in FAMILIES)]
    rows += [row(task, measure) for measure in MEASURES[1:] for task in (DOMAIN, *FAMILIES)]
    return tuple(Evaluated(one, "7" * 32, "tiny") for one in rows)


def traces(task: str = DOMAIN, question: str = "Where does it go?", step: str = "It is red.") -> Traces:
    before = {"steps": [step, "Red goes north."], "answer": "north", "is_right": True, "by_backbone": [-3.0, -2.9, -0.1]}
    after = {"steps": [step], "answer": None, "is_right": False, "by_backbone": [-3.0, -2.95], "by_adapted": [-0.2, -0.25]}
    example = {"id": "parcel 1", "question": question, "gold": "north", "before": before | {"by_adapted": []}, "after": after}
    document = {
        "informative": 0.05,
        "floor": -5.0,
        "tasks": [{"task": task, "role": "domain", "examples": [example, example | {"id": "parcel 2"}]}],
    }
    return Traces(document, "6" * 32)


def matrix() -> Matrix:
    documents = []
    for stage, domain, scores in ((1, "shelves", (0.8, 0.3)), (2, "letters", (0.45, 0.7))):
        base = dict(zip(("shelves", "letters"), (0.3, 0.25), strict=True))
        rows = [
            row(name, "choice_accuracy", "domain", base=base[name], adapted=score, change=score - base[name], summary={})
            for name, score in zip(("shelves", "letters"), scores, strict=True)
        ]
        rows.sort(key=lambda one: one["task"] != domain)
        documents.append({"subject": f"shelves@{stage}", "backbone": "tiny", "rows": rows})
    return Matrix("versions of shelves", "stored evaluations", ContinualMatrix.of(documents).as_dict(), ("8" * 32,))


def influences(removal: bool = True) -> Influences:
    rows = [
        {
            "row": f"row {place}",
            "tokens": 40 + place,
            "domain": 0.1,
            "families": {"boxes": s, "ordering": s / 2},
            "retention": s,
            "advice": "drop",
        }
        for place, s in enumerate(np.linspace(-0.4, 0.5, 30).tolist())
    ]
    contrast = {"change": 0.02, "low": 0.01, "high": 0.03, "by_seed": [0.02, 0.02]}
    removed = {"chains_against_random": {"worst": contrast, "best": contrast}, "chains_against_backbone": contrast}
    told = {
        "rows": rows,
        "evidence": "confirmed",
        "said": ["Leaving the worst rows out kept more."],
        "below_zero": {"boxes": 13, "ordering": 13},
        "removal": removed if removal else None,
    }
    return Influences("home/attribution/shelves-0123456789ab", told)


def whole(**changes: Any) -> Material:
    """Of a release with everything."""
    made = Material(
        subject="shelves@2",
        study=study(),
        release=release(gate_report()),
        measured_as="shelves@2",
        domain=DOMAIN,
        evaluated=evaluated(),
        traces=traces(),
        matrices=(matrix(),),
        influences=influences(),
    )
    return replace(made, **changes)


def bare(**changes: Any) -> Material:
    """Of a release of which nothing but its files is known."""
    return replace(Material("shelves@2", None, release(None), "shelves@2", DOMAIN), **changes)
