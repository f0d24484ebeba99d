"""Accuracy against a forced length of the trace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.statistics import wilson
from service.report.material import Evaluated, Material
from service.report.section import Cell, Missing, Picture, Run, Section, Table, change, interval, number, runs_of
from service.report.svg import ACCENT, FAINT, INK, MUTED, PAPER, picture, plain
from service.report.unmeasured import unmeasured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AT = "right_at_"
_COLUMNS = 3


def budget(material: Material) -> Section:
    read = material.rows("budget")
    shown = [one for one in read if one.is_measurable]
    missing: tuple[Missing, ...] = ()
    if not read:
        missing = (unmeasured(material, "Accuracy by the length of the trace is not stored.", "budget"),)
    return Section(
        "budget",
        "What a longer trace is worth",
        "Every trace is cut after so many tokens, or prolonged, and then answered: where the curve still rises, more tokens pay; "
        "where the adapted curve is level from 0 on, its answers need no trace.",
        "Vertical bars are 95 % intervals of each point alone (Wilson's), so two curves are compared by the change in the table; "
        "a prolonged trace is not one that the model would have written.",
        pictures=(_curves(shown),) if shown else (),
        tables=(_table(read),) if read else (),
        missing=missing,
        runs=runs_of(one.run_id for one in read),
    )


def points(parts: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(budget, share right), by rising budget."""
    found = [(int(name.removeprefix(_AT)), float(value)) for name, value in parts.items() if name.removeprefix(_AT).isdigit()]
    return sorted(found)


def _curves(read: Sequence[Evaluated]) -> Picture:
    columns = min(_COLUMNS, len(read))
    lines = math.ceil(len(read) / columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, one in zip(grid, read, strict=False):
            _curve(axes, one)
        for axes in list(grid)[len(read) :]:
            axes.set_visible(False)
        figure.supxlabel("tokens of the trace", fontsize=9)
        figure.supylabel("share right", fontsize=9)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)

    def told(parts: Mapping[str, Any]) -> str:
        return ", ".join(f"{value:.2f} at {tokens}" for tokens, value in points(parts))

    said = "; ".join(
        f"{one.task}: backbone {told(one.row['base_parts'])}, adapted {told(one.row['adapted_parts'])}" for one in read
    )
    return picture("budget", 2.4 * columns + 0.8, 1.9 * lines + 0.7, f"Share right by tokens of the trace. {said}.", draw)


def _curve(axes: Axes, one: Evaluated) -> None:
    items = len(one.row["items"]["ids"])
    sides = (("base_parts", "backbone", PAPER, "o", "--", -1), ("adapted_parts", "adapted", ACCENT, "s", "-", 1))
    budgets: list[int] = []
    for side, label, fill, marker, style, shift in sides:
        found = points(one.row[side])
        budgets, shares = [tokens for tokens, _ in found], [share for _, share in found]
        # Beside each other, so that their bars can be told apart.
        places = [math.log1p(tokens) + 0.05 * shift for tokens in budgets]
        ends = [wilson(round(share * items), items) for share in shares]
        reach = [[max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)]]
        reach.append([max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)])
        axes.errorbar(
            places,
            shares,
            yerr=reach,
            marker=marker,
            linestyle=style,
            color=INK,
            ecolor=MUTED,
            elinewidth=0.8,
            mfc=fill,
            mec=INK,
            markersize=5,
            label=label,
        )
    axes.set_title(plain(one.task, 30), loc="left")
    axes.set_xticks([math.log1p(tokens) for tokens in budgets], [str(tokens) for tokens in budgets])
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)


def _table(read: Sequence[Evaluated]) -> Table:
    budgets = [tokens for tokens, _ in points(next((one.row["base_parts"] for one in read if one.is_measurable), {}))]

    def row(one: Evaluated) -> tuple[Cell, ...]:
        if not one.is_measurable:
            return (one.task, f"not measurable: {one.row['not_measurable']}", *["-"] * (5 + len(budgets)), Run(one.run_id))
        before, after = dict(points(one.row["base_parts"])), dict(points(one.row["adapted_parts"]))
        pairs = tuple(f"{before[b]:.2f} → {after[b]:.2f}" if b in before and b in after else "-" for b in budgets)
        told = one.row["summary"]
        return (
            one.task,
            change(one.row["change"]),
            interval(one.row["low"], one.row["high"]),
            *pairs,
            number(told.get("base_peak"), 0),
            number(told.get("adapted_peak"), 0),
            interval(told.get("peak_change_low"), told.get("peak_change_high"), 0),
            Run(one.run_id),
        )

    at = tuple(f"right at {tokens}" for tokens in budgets)
    head = ("task", "change over the budgets", "95 % interval", *at, "b*, backbone", "b*, adapted", "change of b*, tokens", "run")
    title = "Share right by budget, backbone → adapted; b* is the length at which the fitted curve is highest"
    return Table(title, head, tuple(map(row, read)))
