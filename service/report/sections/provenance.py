"""What the adapter is, and the runs that the numbers come from."""

from __future__ import annotations

from shlex import quote

from service.report.material import Material
from service.report.section import Cell, Missing, Run, Section, Table, runs_of


def provenance(material: Material) -> Section:
    tables, missing = list[Table](), list[Missing]()
    if material.release is not None:
        tables.append(_facts(material))
    else:
        name = material.study.name if material.study else material.subject
        missing.append(Missing("Nothing of this study is published: it has no manifest.", f"graftline publish {quote(name)}"))
    if runs := _runs(material):
        tables.append(Table("Runs in MLflow", ("run", "what it holds"), tuple(runs)))
    return Section(
        "provenance",
        "Where it comes from",
        "These values and digests decide the release: with the same ones graftline reproduce fits it again.",
        "A digest shows that data changed, not what they were.",
        tables=tuple(tables),
        missing=tuple(missing),
        runs=runs_of(()),
    )


def _facts(material: Material) -> Table:
    assert material.release is not None
    manifest = material.release.manifest
    kinds = ", ".join(manifest.profile.adapters) or "none"
    facts: list[tuple[Cell, ...]] = [
        ("release", material.release.full_name),
        ("standing", material.release.standing),
        ("backbone", f"{manifest.backbone.name}, {manifest.backbone.computes_in}, fingerprint {manifest.backbone.fingerprint}"),
        ("adapters", f"{kinds} at scale {manifest.profile.scale:g}"),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items()) or "none"),
        ("data", ", ".join(f"{name} {digest}" for name, digest in manifest.data_digests.items()) or "none"),
        ("manifest", manifest.digest()),
    ]
    if machine := manifest.fitted_on:
        packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        facts.append(
            ("fitted on", f"{machine.device}, {machine.cpu} ({machine.instructions}), {machine.threads} threads; {packages}")
        )
    if manifest.derived:
        facts.append(("made as", ", ".join(f"{name}: {value}" for name, value in manifest.derived.items())))
    return Table("The release", ("", ""), tuple(facts))


def _runs(material: Material) -> list[tuple[Cell, ...]]:
    """Every run once, under all that it holds."""
    held: dict[str, list[str]] = {}

    def add(run_id: str | None, what: str) -> None:
        if run_id and what not in held.setdefault(run_id, []):
            held[run_id].append(what)

    if material.release:
        add(material.release.run_id, f"the fit of {material.release.full_name}")
        add(material.release.gate_run, "what the gate read")
    if material.study:
        add(material.study.run_id, f"study {material.study.name}")
        for trial in material.study.trials:
            add(trial.run_id, f"trial {trial.number}")
    for one in material.evaluated:
        add(one.run_id, f"evaluation: {one.measure}")
    if material.traces:
        add(material.traces.run_id, "example traces")
    for matrix in material.matrices:
        for run_id in matrix.run_ids:
            add(run_id, "a stage of the matrix")
    return [(Run(run_id), "; ".join(what)) for run_id, what in held.items()]
