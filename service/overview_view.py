"""How a study is shown from outside: `graftline sweep status`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.clock import clock
from service.sweep_view import settings_text
from tuning.budget import money
from tuning.overview import Overview

_SHOWN = 10  # candidates, best first
_WORDS = {"run": "goes on", "pause": "is paused", "stop": "is stopped"}


def overview_view(seen: Overview) -> Group:
    parts: list[RenderableType] = [Text(line) for line in lines(seen)]
    if seen.candidates:
        parts.append(_candidates(seen))
    if seen.running:
        parts.append(_running(seen))
    if seen.failures:
        parts.append(_failures(seen))
    parts.append(_importances(seen))
    return Group(*parts)


def lines(seen: Overview) -> list[str]:
    """The state in a few sentences."""
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(seen.states.items())) or "none yet"
    word = "is over" if seen.over and seen.asked == "run" else _WORDS[seen.asked]
    told = [f"study {seen.study} {word}: {seen.finished} of {seen.wanted} trials finished ({states})", _spent(seen)]
    alive = sum(one.alive is not False for one in seen.running)
    lost = len(seen.running) - alive
    if seen.running:
        told.append(f"workers: {alive} alive" + (f", {lost} not heard of" if lost else ""))
    if not seen.left.may_begin and not seen.left.may_come:
        told.append(f"no further trial begins: {seen.left.used_up}")
    if seen.best is None:
        told.append("best: no feasible trial yet")
    else:
        best = seen.best
        told.append(f"best: trial {best.trial}, gain {best.domain_gain:+.3f}, retention {best.retention:+.2f} margins")
    told.append(f"hypervolume: {seen.hypervolume:.4f} (gain above 0 times retention above -1 margin)")
    return told


def _spent(seen: Overview) -> str:
    parts = [f"time: {clock(seen.spent.wall_s)}"]
    if seen.time_budget_s is not None:
        parts[0] += f" of {clock(seen.time_budget_s)}"
    if seen.cost is not None:
        of = "" if seen.max_cost is None else f" of {money(seen.max_cost)}"
        parts.append(f"cost: {money(seen.cost)}{of} {seen.currency}".rstrip())
    if seen.eta_s is not None:
        parts.append(f"about {clock(seen.eta_s)} left")
    return ", ".join(parts)


def _candidates(seen: Overview) -> Table:
    table = Table(title="trials, best first", title_justify="left")
    for heading in ("trial", "gain", "retention", "", "weights", "settings"):
        table.add_column(heading)
    for one in seen.candidates[:_SHOWN]:
        verdict, weights = "feasible" if one.feasible else "loses too much", "removed" if one.removed else "kept"
        table.add_row(
            str(one.trial), f"{one.domain_gain:+.3f}", f"{one.retention:+.2f}", verdict, weights, settings_text(one.params)
        )
    return table


def _running(seen: Overview) -> Table:
    table = Table(title="running", title_justify="left")
    for heading in ("trial", "worker", "for", "heartbeat"):
        table.add_column(heading)
    for one in seen.running:
        beat = {None: "-", True: "heard", False: "NOT heard"}[one.alive]
        table.add_row(str(one.trial), one.worker or "-", clock(one.seconds), beat)
    return table


def _failures(seen: Overview) -> Table:
    table = Table(title="without values", title_justify="left")
    for heading in ("trial", "state", "reason"):
        table.add_column(heading)
    for one in seen.failures:
        table.add_row(str(one.trial), one.state.lower(), one.reason)
    return table


def _importances(seen: Overview) -> RenderableType:
    if seen.no_importances:
        return Text(f"importances: {seen.no_importances}")
    table = Table(title="importance (shares of 1)", title_justify="left")
    table.add_column("setting")
    for objective in seen.importances:
        table.add_column(objective)
    for setting in dict.fromkeys(name for shares in seen.importances.values() for name in shares):
        table.add_row(setting, *(f"{shares.get(setting, 0.0):.2f}" for shares in seen.importances.values()))
    return table
