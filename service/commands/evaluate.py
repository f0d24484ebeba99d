"""`graftline evaluate`: every measure on backbone and adapter, as paired changes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from registry.tracking import Tracking
from service.commands.kept import keep
from service.commands.subject import LOADED, Subject, load_subject
from service.commands.workload import Workload

if TYPE_CHECKING:
    from evaluation.evaluate import Evaluation, Paired, Planned, Row


class JudgeAt(NamedTuple):
    """An OpenAI-compatible endpoint, what stands there before /chat/completions, and the name of its model."""

    base_url: str
    model: str
    timeout_s: float | None = None  # of one reply; None for the judge's default


def evaluate(
    named: str,
    domain: str | None,
    backbone_name: str | None,
    items: int,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
    measures: Sequence[str] = (),
    tasks: Sequence[str] = (),
    picture: Path | None = None,
    judge: JudgeAt | None = None,
) -> None:
    """`measures`: names of MEASURES in place of the usual ones, or "all"; `tasks` are read beside the protected ones.

    `judge` reads the domain's explanations.
    """
    from evaluation.four_cells import four_cells_by_task
    from evaluation.measures import MEASURES, OF_TEXT, measure_named
    from evaluation.tasks import task_named
    from tuning.plan import READ_ALSO

    every = [name for name in MEASURES if name not in OF_TEXT]
    named_ones = [measure_named(name).name for name in measures if name != "all"]
    chosen = every if "all" in measures else named_ones or READ_ALSO
    for name in tasks:
        task_named(name)  # before a backbone is loaded
    if picture is not None:
        picture.parent.stat()  # a folder that is not there is told before anything is read
    subject = load_subject(named, domain, backbone_name, home, tracking_uri)
    backbone = subject.backbone
    found, left_out = evaluated(subject, items, chosen, tasks, judge)
    run_id = keep(subject, found, left_out, items, Tracking.at(subject.home, tracking_uri))
    if picture is not None:
        draw_reliability(subject, named, items, picture)
    cells = four_cells_by_task(found.rows)
    tokens = sum(row.base.tokens + row.adapted.tokens for row in found.rows)
    if as_json:
        four = {"four_cells": {task: one.as_dict() for task, one in cells.items()}} if cells else {}
        print(json.dumps({"subject": named, "backbone": backbone.name, **found.as_dict(), **four, "not_measurable": left_out}))
        return
    show(found.rows, f"{named} against {backbone.name}, {items} items a task of the select split")
    print(f"{tokens:,} tokens went through a forward for this, those of stored readings among them")
    for name, p_value in found.losses.items():
        row = found.retention[name]
        if not row.not_measurable:
            print(f"{name}: p of a loss {p_value:.3f}; {_overlooked(row)}")
    for task, one in cells.items():
        print(f"{task}: dependence on the trace, by who wrote it and who reads it\n{one}")
    for name, reason in left_out.items():
        print(f"{name}: not measurable on this backbone: {reason}")
    if run_id is not None:
        print(f"kept in MLflow, run {run_id}: `graftline report` shows it")


def evaluated(
    subject: Subject, items: int, measures: Sequence[str], tasks: Sequence[str] = (), judge: JudgeAt | None = None
) -> tuple[Evaluation, dict[str, str]]:
    """What is read of a subject, and which tasks are not measurable on its backbone, with the reason."""
    from evaluation.evaluate import evaluate as read_all
    from tuning.plan import report_plan

    measurable, left_out = subject.measurable("grammar", "text", *tasks)  # the two are always shown
    plan = report_plan(subject.domain, measurable, items, measures)
    if judge is not None:
        plan.append(judged(subject, judge, items))
    work = Workload.of(subject, plan)
    print(f"{subject.name} against {subject.backbone.name}: {work}", file=sys.stderr)
    engine, backbone = subject.engine, subject.backbone
    return read_all(engine, backbone, LOADED, plan, subject.cache, work.on_read, subject.adapted_cache), left_out


def _overlooked(row: Row) -> str:
    if math.isnan(row.smallest_detectable):
        return f"its {row.change.n} items show no spread, so that how small a loss would show is not known"
    return f"one of {row.smallest_detectable:.3f} would show in four of five readings"


def draw_reliability(subject: Subject, named: str, items: int, picture: Path) -> None:
    """Of backbone and subject on the domain's items, as a PNG."""
    from evaluation.evaluate import Planned, read_plan
    from evaluation.measures.calibration import BrierScore
    from evaluation.reliability import draw

    plan = [Planned(BrierScore(), subject.domain, subject.domain.examples("select", items), "report")]
    sides = {}
    for side, profile, cache in (
        (subject.backbone.name, None, subject.cache),
        (named, LOADED, subject.adapted_cache),
    ):
        (readings,) = read_plan(subject.engine, subject.backbone, profile, plan, cache)
        sides[side] = readings.parts["confidence"], readings.parts["right"]
    draw(sides, picture)


def judged(subject: Subject, judge: JudgeAt, items: int) -> Planned:
    """The domain's explanations before a judge, whose replies are kept in the home."""
    from evaluation.evaluate import Planned
    from evaluation.judge import TIMEOUT_S, Judge
    from evaluation.measures.judged_rationality import JudgedRationality

    cache = subject.home / "cache" / "judge"
    measure = JudgedRationality(Judge(judge.base_url, judge.model, cache, timeout_s=judge.timeout_s or TIMEOUT_S))
    return Planned(measure, subject.domain, subject.domain.examples("select", items), "report")


def show(rows: Sequence[Paired], title: str, console: Console | None = None) -> None:
    """The table, and below it what stands beside each row. Where no one looks at a terminal, lines are as long as they need."""
    console = console or Console(markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(table(rows, title))
    for row in rows:
        if said := beside(row):
            console.print(f"{row.adapted.task}, {row.adapted.measure}: {said}", soft_wrap=True, highlight=False, markup=False)


_WIDE = 160  # columns that the table takes


def table(rows: Sequence[Paired], title: str) -> Table:
    """One row a measure and task."""
    from evaluation.evaluate import means_of

    made = Table(title=title, title_justify="left")
    for heading in ("task", "measure", "backbone", "adapted", "change", "95 % interval", "unit", "n"):
        made.add_column(heading, overflow="fold")
    for row in rows:
        change, named = row.change, (row.adapted.task, row.adapted.measure)
        if row.not_measurable:
            made.add_row(*named, *["-"] * 5, "0")
            continue
        base, adapted = means_of(row)
        numbers = (f"{base:.3f}", f"{adapted:.3f}", f"{change.mean:+.3f}")
        made.add_row(*named, *numbers, f"[{change.low:+.3f}, {change.high:+.3f}]", row.adapted.unit, str(change.n))
    return made


def beside(row: Paired) -> str:
    """Why nothing is measurable, and what the measure says beside the change; a dash where a number is undefined.

    A profile's own numbers stand though there is no change: dependence on soft thoughts, which no backbone has.
    """
    known = {name: value for name, value in row.summary.items() if value is not None or not row.not_measurable}
    told = [f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}" for name, value in known.items()]
    return "; ".join(filter(None, (f"not measurable: {row.not_measurable}" if row.not_measurable else "", ", ".join(told))))
