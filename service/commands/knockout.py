"""`graftline knockout`: what each group of layers of an adapter gains and loses, and what holding it back would keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from service.clock import lasting
from service.commands.subject import LOADED, Subject, load_subject
from service.pace import Pace

if TYPE_CHECKING:
    from evaluation.evaluate import Row
    from evaluation.knockout import KnockOut, Point

ITEMS, FULL_ITEMS = 12, 60
GROUPS, FULL_GROUPS = 6, 10


def knockout(
    named: str,
    groups: int | None,
    items: int | None,
    full: bool,
    picture: Path | None,
    domain: str | None,
    backbone_name: str | None,
    home: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """`full`: as many groups, strengths and items as docs/measures.md reports, in float32. What it will cost is told first."""
    from evaluation.knockout import ALPHAS, FEW_ALPHAS, acts_in_layers, bands, grouped, knock_out, num_readings, seconds_for
    from tuning.plan import knockout_plan

    if picture is not None:
        picture.parent.stat()  # a folder that is not there is told before anything is read
    items, alphas = items or (FULL_ITEMS if full else ITEMS), ALPHAS if full else FEW_ALPHAS
    subject = load_subject(named, domain, backbone_name, home, tracking_uri, "float32" if full else "bfloat16")
    families, left_out = subject.measurable()
    num_layers = len(subject.backbone.layers)
    layers = grouped(num_layers, min(groups or (FULL_GROUPS if full else GROUPS), num_layers)), bands(num_layers)
    plan = knockout_plan(subject.domain, families, items)
    readings = num_readings(num_layers, *layers, alphas) if acts_in_layers(subject.profile) else 0
    if readings:
        print(f"trying {len(plan)} tasks on a few items each, to tell how long the whole will take", file=sys.stderr)
        seconds = seconds_for(subject.engine, subject.backbone, subject.profile, plan, readings)
        print(f"{readings} readings of {len(plan)} tasks, {items} items each: about {lasting(seconds)}", file=sys.stderr)
    found = knock_out(
        subject.engine,
        subject.backbone,
        subject.profile,
        plan,
        *layers,
        alphas,
        cache=subject.cache,
        on_progress=partial(Pace(), "readings"),
    )
    if picture is not None:
        _draw(subject, items, picture)
    if as_json:
        about = {"subject": named, "backbone": subject.backbone.name, "items": items, "readings": readings}
        if found.not_measurable:
            left_out |= {planned.task.name: found.not_measurable for planned in plan}
        print(json.dumps({**about, **found.as_dict(), "not_measurable": left_out}))
        return
    _show(found, f"{named} on {subject.backbone.name}, {items} items a task of the select split")
    for name, reason in left_out.items():
        print(f"{name}: not measurable on this backbone: {reason}")


def _draw(subject: Subject, items: int, picture: Path) -> None:
    from evaluation.cka import cka_curves, draw

    draw(cka_curves(subject.engine, subject.backbone, LOADED, subject.domain.examples("select", max(items, 64))), picture)


def _show(found: KnockOut, title: str) -> None:
    if found.not_measurable:
        print(f"not measurable: {found.not_measurable}")
        return
    console = Console(markup=False)
    console.print(matrix(found, title))
    for point in found.off:
        for family in point.retention:
            cost = point.cost(family)
            if cost is not None:
                regained = point.retention[family].unit
                print(
                    f"without layers {point.layers.name}: {cost.value:.3g} [{cost.low:.3g}, {cost.high:.3g}] {point.domain.unit} "
                    f"of the domain lost for each {regained} of {family} regained"
                )
    console.print(sweep(found))


def matrix(found: KnockOut, title: str) -> Table:
    """One row a group: what its absence changes in every task. A star: the 95 % interval is clear of 0."""
    made = Table(title=f"{title}: change when the adapter is off in these layers", title_justify="left")
    made.add_column("layers off")
    for row in found.whole:
        made.add_column(f"{row.planned.task.name}\n({row.unit})", justify="right")
    made.add_row("(adapter - backbone)", *map(_cell, found.whole), end_section=True)
    for point in found.off:
        made.add_row(point.layers.name, *map(_cell, point.against_whole))
    return made


def sweep(found: KnockOut) -> Table:
    """One row a band and strength, against the backbone; marked where no other is better in both."""
    made = Table(title="strength by band: domain gain and mean loss of retention in margins", title_justify="left")
    for heading in ("layers", "alpha", "domain gain", "retention", "on the front"):
        made.add_column(heading, overflow="fold")
    front: Sequence[Point] = found.front
    for point in found.sweep:
        gain, kept = point.scores
        mark = "yes" if point in front else ""
        made.add_row(point.layers.name, f"{point.alpha:g}", f"{gain:+.3f}", f"{kept:+.2f}", mark)
    return made


def _cell(row: Row) -> str:
    if row.not_measurable:
        return "-"
    clear = row.change.low > 0 or row.change.high < 0
    return f"{row.change.mean:+.3f}{'*' if clear else ' '}"
