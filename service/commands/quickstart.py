"""`graftline quickstart`: the whole life of an adaptation, with every phase timed and shown."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from adapters.whole_file import write_whole
from registry.database_url import shown
from registry.errors import NoChampion
from registry.gate_report import GateReport
from registry.home import home_directory
from registry.ledger import Ledger
from registry.manifest import MANIFEST, file_digest
from registry.policy import policies
from registry.release import Release, load_release, published
from registry.runs import ui_command
from registry.tracking import Tracking
from registry.verdicts import recorded_report
from service.clock import clock
from service.commands.releases import gate_release, gate_table, publish_directory
from service.commands.tune import run_sweep
from service.lease import served_id
from service.serve import Server, start_server
from service.settings import Settings
from tuning.candidates import Candidate, stored_candidates
from tuning.comparison import Comparison, compare
from tuning.objective import POOLED
from tuning.recipe import Recipe
from tuning.standing import Standing
from tuning.study import Sweep

if TYPE_CHECKING:
    from evaluation.task import Example

NOTHING_PASSED = 3
COMPARED_ITEMS = 300  # of the select split
MIN_GATE_S = 60.0  # with less left than this, or than a round took, no further candidate is begun


@dataclass
class Phases:
    """Wall time by phase, shown as each begins and kept for the summary."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str, expected: str) -> Iterator[None]:
        self.console.print(f"\n[{clock(time.monotonic() - self.started)}] {name} ({expected})", style="bold", highlight=False)
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


@dataclass(frozen=True)
class Gated:
    candidate: Candidate | None  # None: it was promoted by an earlier run
    release: Release
    report: GateReport | None


def quickstart(home: Path | None, recipe_file: Path, keep_serving: bool) -> int:
    console = Console(width=None if Console().is_terminal else 140, markup=False)
    phases, place = Phases(console), home_directory(home)
    recipe = Recipe.load(recipe_file)
    tracking = Tracking.at(place)
    sweep = Sweep(recipe, place, tracking)
    console.print(f"recipe {recipe_file}, backbone {recipe.backbone}, home {place}", highlight=False)
    with phases.phase("backbone and registry", "about 20 s the first time, then 10 s"):
        tracking.create()
        _warm_backbone(recipe.backbone, console)
    with phases.phase("sweep", f"{_sweep_time(recipe)}; the first trial is the plain recipe"):
        gated = _champion(tracking, recipe)
        # With a champion there is nothing left to look for; without one, a second run sweeps on.
        candidates = stored_candidates(place, recipe.name) if gated else run_sweep(_with_time(sweep), resume=sweep.exists)
    plain = next((candidate for candidate in candidates if candidate.score.get("as_fitted")), None)
    if plain is not None:
        console.print(retention_table(plain))
    with phases.phase("gate", f"at most {clock(recipe.gate.time_budget_s)} for up to {recipe.gate.candidates} candidates"):
        gated = gated or _gate_in_order(tracking, recipe, candidates, place, console)
    comparison = None
    if gated is not None and plain is not None:
        with phases.phase("comparison", f"gains of both on {COMPARED_ITEMS} items that nothing has read, about 1 min"):
            comparison = _compared(sweep, plain, gated.release, console)
    with phases.phase("service", "about 20 s"):
        settings = Settings(backbone=recipe.backbone, home=place, tracking_uri=tracking.uri, port=_free_port())
        log_file = place / "service.log"
        with start_server(settings, log_file=log_file) as server:
            names = [served_id(recipe.backbone), *((recipe.name,) if gated else ())]
            console.print(completions_table(server, names, _example(recipe)))
            if keep_serving:
                _summary(console, phases, sweep, plain, gated, comparison, server)
                console.print("serving until Ctrl-C")
                _wait()
                return 0 if gated else NOTHING_PASSED
    _summary(console, phases, sweep, plain, gated, comparison, None)
    return 0 if gated else NOTHING_PASSED


def _with_time(sweep: Sweep) -> Sweep:
    """A second run sweeps on for as long as the first."""
    budget = sweep.recipe.study.time_budget_s
    if budget is None or not sweep.exists:
        return sweep
    spent_s = Standing.of(sweep).overview().spent.wall_s
    return replace(sweep, recipe=sweep.recipe.with_values({"study.time_budget_s": budget + spent_s}))


def _sweep_time(recipe: Recipe) -> str:
    trials = f"at least {recipe.study.min_trials} trials" if recipe.study.min_trials else f"at most {recipe.study.trials} trials"
    return f"about {clock(recipe.study.time_budget_s)}, {trials}" if recipe.study.time_budget_s else trials


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
    from tuning.gating import gate_settings

    chosen = [candidate for candidate in candidates if candidate.feasible and candidate.domain_gain > 0][: recipe.gate.candidates]
    if not chosen:
        console.print("no trial kept every family within its margin with a gain, so nothing is brought before the gate")
        return None
    backbone = Backbone.load(recipe.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    deadline, round_s = time.monotonic() + recipe.gate.time_budget_s, MIN_GATE_S
    for number, candidate in enumerate(chosen):
        left = deadline - time.monotonic()
        if number and left < round_s:
            console.print(f"the gate's time is used up; {len(chosen) - number} candidates were not gated")
            break
        release = published(tracking, recipe.name, candidate.directory) or publish_directory(
            tracking, candidate.directory, recipe.name, candidate.run_id
        )
        earlier = recorded_report(tracking, release.full_name)
        if earlier is not None and earlier.verdict == "fail":
            console.print(earlier.sentence, highlight=False)
            continue
        head = Ledger(tracking, recipe.name).head()
        policy = policies(tracking, recipe.name)[-1].policy
        settings = gate_settings(policy, len(chosen), time_budget_s=left)
        report = gate_release(tracking, release, engine, backbone, settings, policy, home, console)
        round_s = max(round_s, report.elapsed_s / max(1, report.rounds - report.rounds_before))
        console.print(gate_table(report))
        console.print(report.sentence, highlight=False)
        if report.passed:
            Ledger(tracking, recipe.name).promote(release.version, report, reason="quickstart", expected_head=head)
            return Gated(candidate, release, report)
    return None


def _compared(sweep: Sweep, plain: Candidate, release: Release, console: Console) -> Comparison:
    """The plain recipe as it was fitted and the release, once: a later run reads the file."""
    from adapters.backbone import Backbone
    from engine.profile import Profile
    from engine.torch_engine import TorchEngine

    file = sweep.directory / f"comparison-{file_digest(release.directory / MANIFEST)[:16]}.json"
    if (known := Comparison.kept(file)) is not None:
        return known
    recipe = sweep.recipe
    backbone = Backbone.load(recipe.backbone)
    engine = TorchEngine(backbone, max_rows=64, precision=recipe.evaluation.precision)
    full = plain.score["as_fitted"]["scale"]["scale"] / plain.score["chosen"]["scale"]
    as_fitted = Profile.load(plain.directory).scaled(full)
    began = time.monotonic()

    def told(done: int) -> None:
        spent = time.monotonic() - began
        console.print(
            f"{done} of 2 adapters read, {clock(spent)}, about {clock(spent / done * (2 - done))} left", highlight=False
        )

    promoted = Profile.load(release.directory)
    found = compare(recipe, engine, backbone, as_fitted, promoted, COMPARED_ITEMS, sweep.home / "cache", on_read=told)
    found.save(file)
    return found


def lost_by(plain: Candidate) -> list[str]:
    return [family for family, value in plain.score["as_fitted"]["constraints"].items() if value > 0 and family != POOLED]


def retention_table(plain: Candidate) -> Table:
    """What shipping the plain recipe's fit as it is would lose."""
    check = plain.score["as_fitted"]
    scale = check["scale"]
    method = ", ".join(f"{name.rsplit('.', 1)[-1]} {value}" for name, value in plain.params.items())
    table = Table(
        title=f"The plain recipe as fitted ({method}): domain gain {scale['domain_gain']:+.3f} on the search split",
        title_justify="left",
    )
    for heading in ("family", "by likelihood", "right in every step", "in margins", ""):
        table.add_column(heading)
    written = check["written"]
    for family, change in scale["chain_changes"].items():
        violation = check["constraints"][family]
        shown = f"{written[family]:+.2f}" if family in written else "-"
        table.add_row(family, f"{change:+.4f}", shown, f"{violation + 1:.1f}", "LOST" if violation > 0 else "kept")
    return table


def completions_table(server: Server, names: list[str], example: Example) -> Table:
    from evaluation.task import answer_line, direct_prompt

    prompt = direct_prompt(example)
    table = Table(title=f"One prompt, {len(names)} answers from {server.openai_url}", title_justify="left", show_lines=True)
    table.add_column("model")
    table.add_column("answer")
    table.add_row("(prompt)", prompt)
    for name in names:
        table.add_row(name, complete(server, name, prompt))
    table.add_row("(right)", answer_line(example.answer))
    return table


def complete(server: Server, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 100, "temperature": 0}
    request = urllib.request.Request(
        f"{server.openai_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def _summary(
    console: Console,
    phases: Phases,
    sweep: Sweep,
    plain: Candidate | None,
    gated: Gated | None,
    comparison: Comparison | None,
    server: Server | None,
) -> None:
    table = Table(title="Summary", title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value")
    if gated is None:
        table.add_row("promoted", f"nothing passed the gate: the backbone is served as it is (exit code {NOTHING_PASSED})")
    else:
        by_override = Ledger(sweep.tracking, gated.release.name).override_in_force()
        how = f" by an override of {by_override.actor}: {by_override.reason}" if by_override else ""
        table.add_row("promoted", f"{gated.release.full_name}{how}")
        if gated.report is not None:
            domain = gated.report.domain
            table.add_row(
                "gained",
                f"{domain.name} {domain.change:+.3f} at the gate, at least {domain.lower:+.3f} ({domain.num_items} items)",
            )
            kept = ", ".join(f"{test.name} {test.change:+.3f}" for test in gated.report.families)
            fewest = min(test.num_items for test in gated.report.families)
            table.add_row("retained", f"{kept} (change at the gate, {fewest} fresh items a family or more)")
    if comparison is not None:
        first, second = comparison.first, comparison.second
        plainly = f"plain recipe {first.adapted:.3f} ({first.change:+.3f} [{first.low:+.3f}, {first.high:+.3f}])"
        promoted = f"promoted {second.adapted:.3f} ({second.change:+.3f} [{second.low:+.3f}, {second.high:+.3f}])"
        table.add_row("on fresh items", f"backbone {first.base:.3f}, {plainly}, {promoted}")
        if comparison.share is not None:
            table.add_row(
                "share of the plain gain",
                f"{comparison.share:.0%} [{comparison.share_low:.0%}, {comparison.share_high:.0%}] ({comparison.items} items)",
            )
    if plain is not None:
        table.add_row("the plain recipe lost", ", ".join(lost_by(plain)) or "nothing that the search could see")
    table.add_row("report", f"{sweep.directory / 'trials.json'} and pareto.png beside it")
    table.add_row("MLflow UI", ui_command(sweep.tracking) or shown(sweep.tracking.uri))
    table.add_row("endpoint", f"{server.openai_url} (up now)" if server else f"graftline serve --home {sweep.home}")
    table.add_row("time", ", ".join(f"{name} {clock(seconds)}" for name, seconds in phases.seconds.items()))
    table.add_row("in all", clock(time.monotonic() - phases.started))
    console.print(table)
    figures = _figures(phases, sweep, plain, gated, comparison)
    write_whole(sweep.home / "quickstart.json", json.dumps(figures, indent=2))


def _figures(
    phases: Phases, sweep: Sweep, plain: Candidate | None, gated: Gated | None, comparison: Comparison | None
) -> dict[str, object]:
    """The summary for scripts; None where there is nothing to tell."""
    report = gated.report if gated else None
    return {
        "seconds": phases.seconds,
        "trials": len(stored_candidates(sweep.home, sweep.recipe.name)),
        "plain_gain": plain.score["as_fitted"]["scale"]["domain_gain"] if plain else None,
        "plain_lost": lost_by(plain) if plain else None,
        "promoted": str(gated.release.full_name) if gated else None,
        "promoted_params": gated.candidate.params if gated and gated.candidate else None,
        "gate_gain": report.domain.change if report else None,
        "gate_gain_at_least": report.domain.lower if report else None,
        "gate_retention": {test.name: test.change for test in report.families} if report else None,
        "comparison": asdict(comparison) if comparison else None,
    }


def _example(recipe: Recipe) -> Example:
    from evaluation.tasks import task_named

    return task_named(recipe.domain).examples("gate", 1, seed=11)[0]


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
