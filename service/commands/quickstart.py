"""`graftline quickstart`: the whole life of an adaptation, with every phase timed and shown."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from registry.errors import NoChampion
from registry.gate_report import GateReport
from registry.home import home_directory
from registry.ledger import Ledger
from registry.names import ReleaseName
from registry.release import Release, load_release
from registry.tracking import Tracking
from service.commands.releases import gate_table, publish_directory, round_line
from service.commands.tune import run_sweep
from service.serve import Server, start_server
from service.settings import Settings
from service.sweep_view import clock
from tuning.recipe import Recipe
from tuning.study import Candidate, Sweep, stored_candidates

NOTHING_PASSED = 3


@dataclass
class Phases:
    """Wall time by phase, shown as each begins and kept for the summary."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str, expected: str) -> Iterator[None]:
        self.console.print(
            f"\n[{clock(time.monotonic() - self.started)}] {name} ({expected})", style="bold", markup=False, highlight=False
        )
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


@dataclass(frozen=True)
class Gated:
    candidate: Candidate | None  # None: it was promoted by an earlier run
    release: Release
    report: GateReport | None


def quickstart(home: Path | None, recipe_file: Path, keep_serving: bool) -> int:
    console = Console(width=None if Console().is_terminal else 140)
    phases, place = Phases(console), home_directory(home)
    recipe = Recipe.load(recipe_file)
    tracking = Tracking.at(place)
    sweep = Sweep(recipe, place, tracking)
    console.print(f"recipe {recipe_file}, backbone {recipe.backbone}, home {place}", highlight=False)
    with phases.phase("backbone and registry", "about 20 s the first time, then 10 s"):
        tracking.create()
        _warm_backbone(recipe.backbone, console)
    with phases.phase("sweep", f"at most {clock(recipe.study.time_budget_s or 0)}; the first trial is the plain recipe"):
        candidates = run_sweep(sweep, resume=sweep.exists)
    plain = next((candidate for candidate in candidates if candidate.trial == 0), None)
    if plain is not None:
        console.print(retention_table("The plain recipe (trial 0)", plain))
    with phases.phase("gate", f"at most {clock(recipe.gate.time_budget_s)} for up to {recipe.gate.candidates} candidates"):
        gated = _champion(tracking, recipe) or _gate_in_order(tracking, recipe, candidates, place, console)
    with phases.phase("service", "about 20 s"):
        settings = Settings(backbone=recipe.backbone, home=place, port=_free_port())
        log_file = place / "service.log"
        with start_server(settings, log_file=log_file) as server:
            names = [recipe.backbone, recipe.name] if gated else [recipe.backbone]
            console.print(completions_table(server, names, _example_prompt(recipe)))
            if keep_serving:
                _summary(console, phases, sweep, plain, gated, server)
                console.print("serving until Ctrl-C")
                _wait()
                return 0 if gated else NOTHING_PASSED
    _summary(console, phases, sweep, plain, gated, None)
    return 0 if gated else NOTHING_PASSED


def _warm_backbone(name: str, console: Console) -> None:
    from adapters.backbone import Backbone

    backbone = Backbone.load(name)
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    console.print(f"{name}: {parameters / 1e6:.0f}M parameters, frozen, fingerprint {backbone.fingerprint[:12]}", highlight=False)


def _champion(tracking: Tracking, recipe: Recipe) -> Gated | None:
    """What an earlier run promoted."""
    ledger = Ledger(tracking, recipe.name)
    try:
        release = load_release(tracking, recipe.name, ledger.champion_version())
    except NoChampion:
        return None
    return Gated(None, release, ledger.report_of(ledger.head().number))


def _gate_in_order(tracking: Tracking, recipe: Recipe, candidates: list[Candidate], home: Path, console: Console) -> Gated | None:
    """Publishes and gates feasible candidates, best first, until one passes or the time is used up."""
    from adapters.backbone import Backbone
    from engine.torch_engine import TorchEngine
    from registry.verdicts import record_verdict
    from tuning.gating import Subject, gate, gate_settings

    chosen = [candidate for candidate in candidates if candidate.feasible and candidate.domain_gain > 0][: recipe.gate.candidates]
    if not chosen:
        console.print("no trial kept every family within its margin with a gain, so nothing is brought before the gate")
        return None
    backbone = Backbone.load(recipe.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    deadline = time.monotonic() + recipe.gate.time_budget_s
    for number, candidate in enumerate(chosen):
        left = deadline - time.monotonic()
        if number and left < 30:
            console.print(f"the gate's time is used up; {len(chosen) - number} candidates were not gated")
            break
        release = publish_directory(tracking, candidate.directory, recipe.name, candidate.run_id)
        ledger = Ledger(tracking, recipe.name)
        head = ledger.head()
        settings = gate_settings(recipe, num_candidates=len(chosen), time_budget_s=left)
        subject = Subject(str(release.full_name), release.directory, release.manifest)
        report = gate(
            subject, engine, backbone, settings, home / "cache", on_round=lambda so_far: console.print(round_line(so_far))
        )
        record_verdict(tracking, release.full_name, report)
        console.print(gate_table(report))
        console.print(report.sentence, highlight=False)
        if report.passed:
            ledger.promote(release.version, report, reason="quickstart", expected_head=head)
            return Gated(candidate, release, report)
    return None


def retention_table(title: str, candidate: Candidate) -> Table:
    score = candidate.score
    table = Table(title=f"{title}: domain gain {candidate.domain_gain:+.3f}", title_justify="left")
    for heading in ("family", "by likelihood", "right in every step", "in margins", ""):
        table.add_column(heading)
    written = score["generated_changes"]
    for family, change in score["chosen"]["chain_changes"].items():
        violation = score["constraints"][family]
        shown = f"{written[family]:+.2f}" if family in written else "-"
        table.add_row(family, f"{change:+.4f}", shown, f"{violation + 1:.1f}", "LOST" if violation > 0 else "kept")
    return table


def completions_table(server: Server, names: list[str], prompt: str) -> Table:
    table = Table(title=f"One prompt, {len(names)} answers from {server.openai_url}", title_justify="left", show_lines=True)
    table.add_column("model")
    table.add_column("answer")
    table.add_row("(prompt)", prompt)
    for name in names:
        table.add_row(name, complete(server, name, prompt))
    return table


def complete(server: Server, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 100, "temperature": 0}
    request = urllib.request.Request(
        f"{server.openai_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def _summary(
    console: Console, phases: Phases, sweep: Sweep, plain: Candidate | None, gated: Gated | None, server: Server | None
) -> None:
    table = Table(title="Summary", title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value")
    if gated is None:
        table.add_row("promoted", f"nothing passed the gate: the backbone is served as it is (exit code {NOTHING_PASSED})")
    else:
        table.add_row("promoted", str(ReleaseName(gated.release.name, gated.release.version)))
        if gated.report is not None:
            domain = gated.report.domain
            table.add_row(
                "gained",
                f"{domain.name} {domain.base_mean:.3f} -> {domain.adapted_mean:.3f} "
                f"({domain.change:+.3f}, at least {domain.lower:+.3f})",
            )
            kept = ", ".join(f"{test.name} {test.change:+.3f}" for test in gated.report.families)
            table.add_row("retained", kept)
        if gated.candidate is not None and plain is not None and plain.domain_gain > 0:
            share = gated.candidate.domain_gain / plain.domain_gain
            table.add_row(
                "against the plain recipe",
                f"{share:.0%} of its gain ({gated.candidate.domain_gain:+.3f} of {plain.domain_gain:+.3f}, search split)",
            )
    if plain is not None:
        lost = [family for family, value in plain.score["constraints"].items() if value > 0]
        table.add_row("the plain recipe lost", ", ".join(lost) or "nothing that the search could see")
    table.add_row("report", f"{sweep.directory / 'trials.json'} and pareto.png beside it")
    table.add_row("MLflow UI", f"mlflow ui --backend-store-uri {sweep.tracking.uri}")
    table.add_row("endpoint", f"{server.openai_url} (up now)" if server else f"graftline serve --home {sweep.home}")
    table.add_row("time", ", ".join(f"{name} {clock(seconds)}" for name, seconds in phases.seconds.items()))
    table.add_row("in all", clock(time.monotonic() - phases.started))
    console.print(table)
    (sweep.home / "quickstart.json").write_text(json.dumps(_figures(phases, sweep, plain, gated), indent=2))


def _figures(phases: Phases, sweep: Sweep, plain: Candidate | None, gated: Gated | None) -> dict[str, object]:
    """The summary for scripts; None where there is nothing to tell."""
    chosen = gated.candidate if gated else None
    share = chosen.domain_gain / plain.domain_gain if chosen and plain and plain.domain_gain > 0 else None
    return {
        "seconds": phases.seconds,
        "trials": len(stored_candidates(sweep.home, sweep.recipe.name)),
        "plain_gain": plain.domain_gain if plain else None,
        "plain_lost": [name for name, value in plain.score["constraints"].items() if value > 0] if plain else None,
        "promoted": str(gated.release.full_name) if gated else None,
        "gate_gain": gated.report.domain.change if gated and gated.report else None,
        "share_of_plain": share,
    }


def _example_prompt(recipe: Recipe) -> str:
    from evaluation.task import direct_prompt
    from evaluation.tasks import task_named

    return direct_prompt(task_named(recipe.domain).examples("gate", 1, seed=11)[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
