"""How a sweep is shown: a live table on a terminal, one line an event elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from service.clock import clock
from tuning.recipe import Recipe
from tuning.study import Event

_MILESTONES = (0.25, 0.5, 0.75, 1.0)


@dataclass
class _Row:
    state: str
    settings: str
    share: float = 0.0
    gain: str = ""
    retention: str = ""
    worst: str = ""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


class LinesView:
    """One line an event, with the time since the start and what is left of the budget."""

    def __init__(self, recipe: Recipe, out: TextIO) -> None:
        self._recipe, self._out = recipe, out
        self._started = time.monotonic()
        self._passed: dict[tuple[int, str], float] = {}
        self._done = 0

    def on_event(self, event: Event) -> None:
        self._done += event.kind in ("complete", "pruned")
        if event.kind in ("fit", "measure"):
            reached = max((mark for mark in _MILESTONES if event.share >= mark), default=0.0)
            if reached <= self._passed.get((event.trial, event.kind), 0.0):
                return
            self._passed[event.trial, event.kind] = reached
            text = f"{event.kind} {reached:.0%}"
        else:
            text = f"{event.kind} {describe(event)}".rstrip()
        who = f"trial {event.trial}: " if event.trial >= 0 else ""
        elapsed = time.monotonic() - self._started
        self._out.write(f"[{clock(elapsed)}{eta(self._recipe, self._done, elapsed)}] {who}{text}\n")
        self._out.flush()


class TableView:
    """A table that is redrawn as trials go on."""

    def __init__(self, recipe: Recipe, console: Console | None = None) -> None:
        self._recipe = recipe
        self._rows: dict[int, _Row] = {}
        self._notes: list[str] = []
        self._started = time.monotonic()
        self._live = Live(get_renderable=self._table, console=console or Console(markup=False), refresh_per_second=4)

    def __enter__(self) -> TableView:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def on_event(self, event: Event) -> None:
        if event.trial < 0:
            self._notes.append(event.text)
            return
        row = self._rows.setdefault(event.trial, _Row("start", settings_text(event.params or {})))
        row.state, row.share = event.kind, event.share
        row.seconds = time.monotonic() - row.started
        if event.score:
            about = "~" if event.kind == "probe" else ""  # read on few items, while the fit goes on
            row.gain = f"{about}{event.score['chosen']['domain_gain']:+.3f}"
            row.retention = f"{about}{event.score['retention']:+.2f}"
            row.worst = worst_family(event.score)
        elif event.kind in ("pruned", "failed"):
            row.worst = event.text.splitlines()[0][:60]

    def _table(self) -> Table:
        elapsed = time.monotonic() - self._started
        done = sum(row.state in ("complete", "pruned") for row in self._rows.values())
        left = eta(self._recipe, done, elapsed)
        title = f"study {self._recipe.name}: {done} of {self._recipe.study.trials} trials, {clock(elapsed)}{left}"
        table = Table(title=title, caption="\n".join(self._notes[-2:]) or None)
        for heading in ("trial", "state", "settings", "gain", "retention", "worst family", "s"):
            table.add_column(heading)
        for number, row in self._rows.items():
            state = row.state if row.state not in ("fit", "probe", "measure") else f"{row.state} {row.share:.0%}"
            table.add_row(str(number), state, row.settings, row.gain, row.retention, row.worst, f"{row.seconds:.0f}")
        return table


def eta(recipe: Recipe, done: int, elapsed: float) -> str:
    """What is left: by the mean time of a finished trial, and no more than the time budget where it need not be exceeded."""
    guesses = []
    if done:
        guesses.append(elapsed / done * (recipe.study.trials - done))
    if recipe.study.time_budget_s is not None:
        guesses.append(recipe.study.time_budget_s - elapsed)
    return f", about {clock(max(0.0, min(guesses)))} left" if guesses else ""


def describe(event: Event) -> str:
    if event.kind == "start":
        return settings_text(event.params or {})
    if event.kind == "complete" and event.score:
        chosen = event.score["chosen"]
        verdict = "feasible" if event.score["feasible"] else f"loses {worst_family(event.score)}"
        retention = f"retention {event.score['retention']:+.2f} margins"
        return f"gain {chosen['domain_gain']:+.3f} at scale {chosen['scale']:g}, {retention}, {verdict}"
    return event.text


def settings_text(params: dict[str, object]) -> str:
    short = (
        f"{key.rsplit('.', 1)[-1]}={value:.3g}" if isinstance(value, float) else f"{key.rsplit('.', 1)[-1]}={value}"
        for key, value in params.items()
    )
    return " ".join(short)


def worst_family(score: dict[str, object]) -> str:
    constraints = score["constraints"]
    assert isinstance(constraints, dict)
    if not constraints:
        return ""
    family = max(constraints, key=lambda name: float(constraints[name]))
    return f"{family} ({constraints[family] + 1:.1f} margins)" if constraints[family] > 0 else "none"
