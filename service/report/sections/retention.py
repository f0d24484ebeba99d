"""The gate's tests: what the domain gained and what each protected family kept, with intervals against the backbone."""

from __future__ import annotations

from collections.abc import Sequence

from registry.gate_report import FamilyVerdict, GateReport
from service.report.forest import Line, forest, said
from service.report.material import Evaluated, Material
from service.report.section import Missing, Number, Picture, Run, Section, Table, change, interval, number, runs_of
from service.report.unmeasured import gate_command, unmeasured

_WORDS = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? undecided"}


def retention(material: Material) -> Section:
    gate, read = material.gate, [one for one in material.evaluated if one.row["role"] in ("domain", "protected", "written")]
    pictures, tables, notes, missing = list[Picture](), list[Table](), list[str](), list[Missing]()
    if gate is not None:
        assert material.release is not None
        pictures.append(_gate_picture(gate))
        tables.append(_gate_table(gate, material.release.gate_run))
        notes += [f"{name} is not measurable on this backbone: {why}" for name, why in gate.not_measurable.items()]
        notes += [f"Training seed +{seed.number}: {seed.sentence}" for seed in gate.seeds]
    elif material.release is not None:
        missing.append(Missing("The gate has not looked at this release.", gate_command(material)))
    if read:
        pictures.append(_read_picture(read))
        tables.append(_read_table(read))
        notes += [f"{one.task}: not measurable: {one.row['not_measurable']}" for one in read if not one.is_measurable]
    else:
        missing.append(unmeasured(material, "No evaluation on items that the gate does not read is stored."))
    if gate is None and not read and material.study is not None and material.study.chosen is not None:
        tables.append(_search_table(material))
    return Section(
        "retention",
        "What was gained and what was kept",
        "Each mark is adapted minus backbone on the same items and each line its interval: a whole line right of its grey bar "
        "(the least gain of the domain, the tolerable loss of a family) is shown; one that crosses it is not.",
        "An interval covers other items of the same tasks, not another fit of the recipe and no skill that is not listed.",
        tuple(pictures),
        tuple(tables),
        tuple(notes),
        missing=tuple(missing),
        runs=runs_of([material.release.gate_run if material.release else None, *(one.run_id for one in read)]),
    )


def _gate_picture(gate: GateReport) -> Picture:
    lines = [(_is_nats(gate, test), _line(test)) for test in gate.tests]
    alpha = f"one-sided bounds, each at alpha {gate.settings.candidate_alpha:.2g}"
    units = ((False, f"adapted minus backbone, share right ({alpha})"), (True, f"adapted minus backbone, nats ({alpha})"))
    panels = [(title, found) for nats, title in units if (found := [line for is_nats, line in lines if is_nats is nats])]
    return forest("gate", panels, f"The gate's tests: {said([line for _, line in lines])}.")


def _is_nats(gate: GateReport, test: FamilyVerdict) -> bool:
    return test.role == "protected" and gate.settings.is_nats(test.name)


def _line(test: FamilyVerdict) -> Line:
    more = "" if test.verdict != "inconclusive" or not test.items_needed else f", needs {test.items_needed} more"
    told, apart = _WORDS[test.verdict] + more, test.role in ("protected", "pooled")
    # A gap below the domain, and one above what pools the families.
    name = f"{test.name} (domain)" if test.role == "domain" else test.name
    return Line(name, test.change, test.lower, test.upper, test.threshold, test.verdict, told, apart and test.role == "pooled")


def _gate_table(gate: GateReport, run_id: str | None) -> Table:
    rows = [
        (
            test.name,
            test.role,
            _WORDS[test.verdict],
            number(test.base_mean),
            number(test.adapted_mean),
            change(test.change),
            interval(test.lower, test.upper),
            change(test.threshold),
            Number(test.num_items, str(test.num_items)),
            "never" if test.items_needed is None else Number(test.items_needed, str(test.items_needed)),
            "-" if test.worst_cluster is None else test.worst_cluster,
            Run(run_id),
        )
        for test in gate.tests
    ]
    head = ("test", "role", "verdict", "backbone", "adapted", "change", "bounds", "must be above", "items", "more needed")
    rounds = f"{gate.rounds} round{'s' if gate.rounds != 1 else ''}, {gate.stopped}"
    return Table(f"The gate, on fresh items of the gate split ({rounds})", (*head, "most lost in", "run"), tuple(rows))


def _read_picture(read: Sequence[Evaluated]) -> Picture:
    units: dict[str, list[Line]] = {}
    for one in read:
        if one.is_measurable:
            name = f"{one.task} (domain)" if one.row["role"] == "domain" else one.task
            units.setdefault(str(one.row["unit"]), []).append(
                Line(name, one.row["change"], one.row["low"], one.row["high"], told=f"{one.row['n']} items")
            )
    panels = [(f"adapted minus backbone, {unit} (95 % intervals)", lines) for unit, lines in units.items()]
    lines = [line for _, found in panels for line in found]
    return forest("evaluated", panels, f"Evaluated on other items, with 95 % intervals: {said(lines)}.")


def _read_table(read: Sequence[Evaluated]) -> Table:
    rows = [
        (
            one.task,
            one.measure,
            number(one.row["base"]),
            number(one.row["adapted"]),
            change(one.row["change"]),
            interval(one.row["low"], one.row["high"]),
            str(one.row["unit"]),
            Number(one.row["n"], str(one.row["n"])),
            number(one.row.get("smallest_detectable")),
            Run(one.run_id),
        )
        for one in read
    ]
    head = ("task", "measure", "backbone", "adapted", "change", "95 % interval", "unit", "items")
    return Table("Evaluated on items of the select split", (*head, "a loss that would show", "run"), tuple(rows))


def _search_table(material: Material) -> Table:
    assert material.study is not None and material.study.chosen is not None
    chosen = material.study.chosen
    assert chosen.score is not None
    nats, written = chosen.score["chosen"].get("chain_changes", {}), chosen.score.get("generated_changes", {})
    rows = [
        (name, change(nats.get(name), 4), change(written.get(name)), Run(chosen.run_id))
        for name in dict.fromkeys((*nats, *written))
    ]
    title = f"Of trial {chosen.number}, as the search read it: few items of the search split, and no interval"
    head = ("family", "change of the gold chain, nats a token", "change in traces right in every step", "run")
    return Table(title, head, tuple(rows))
