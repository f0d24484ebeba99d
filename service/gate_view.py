"""How a gate is shown: a bar with the time that is left on a terminal, one line a round elsewhere."""

from __future__ import annotations

import math
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from registry.gate_report import FamilyVerdict, GateReport
from service.clock import clock


class GateView(Protocol):
    def __enter__(self) -> GateView: ...

    def __exit__(self, *error: object) -> None: ...

    def on_share(self, share: float) -> None:
        """How much of the open round is read."""
        ...

    def on_round(self, report: GateReport) -> None: ...


def gate_view(console: Console, subject: str, time_budget_s: float) -> GateView:
    has_bars = console.is_terminal and not console.is_dumb_terminal
    return BarView(console, subject, time_budget_s) if has_bars else LinesView(console)


class LinesView:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> LinesView:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def on_share(self, share: float) -> None:
        pass

    def on_round(self, report: GateReport) -> None:
        self._console.print(round_line(report))


class BarView:
    """Full when the gate is expected to be decided. What is expected changes with every round, and so may the bar, both ways."""

    def __init__(self, console: Console, subject: str, time_budget_s: float) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), _LeftColumn(), console=console, transient=True
        )
        ends, text = time.monotonic() + time_budget_s, f"gate of {subject}"
        self._task = self._progress.add_task(text, total=1.0, ends=ends, word="at most", start=True)
        self._rounds = 0  # of this run

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_share(self, share: float) -> None:
        self._progress.update(self._task, completed=self._rounds + share)

    def on_round(self, report: GateReport) -> None:
        self._progress.console.print(round_line(report), highlight=False)
        self._rounds, ends = report.rounds - report.rounds_before, time.monotonic() + seconds_left(report)
        total = self._rounds + rounds_left(report)
        self._progress.update(self._task, completed=self._rounds, total=total, ends=ends, word="about")


class _LeftColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['word']} {clock(max(0.0, task.fields['ends'] - time.monotonic()))} left")


def round_line(report: GateReport) -> str:
    decided = sum(test.verdict != "inconclusive" for test in report.tests)
    spent = f"{report.elapsed_s:.0f} s"
    if report.verdict == "inconclusive":
        most = max(0.0, report.settings.time_budget_s - report.elapsed_s)
        spent += f", about {seconds_left(report):.0f} s left, at most {most:.0f} s"
    return f"gate round {report.rounds}: {decided} of {len(report.tests)} tests decided, {report.verdict}, {spent}"


def seconds_left(report: GateReport) -> float:
    """Until the gate ends as things stand: at the speed of this run's rounds, and within its time budget."""
    rounds = max(1, report.rounds - report.rounds_before)
    return min(rounds_left(report) * report.elapsed_s / rounds, max(0.0, report.settings.time_budget_s - report.elapsed_s))


def rounds_left(report: GateReport) -> int:
    """Until every test is expected to be decided, or the rounds of this run are used up; 0 when it is decided."""
    if report.verdict != "inconclusive":
        return 0
    most = max(0, report.settings.max_rounds - (report.rounds - report.rounds_before))
    needed = [_rounds_needed(test, report.rounds) for test in report.tests if test.verdict == "inconclusive"]
    return math.ceil(min(most, max(needed, default=most)))


def _rounds_needed(test: FamilyVerdict, rounds: int) -> float:
    """Infinite where more of the same would not decide it."""
    return math.inf if test.items_needed is None else max(1.0, test.items_needed / (test.num_items / rounds))
