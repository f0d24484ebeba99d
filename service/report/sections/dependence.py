"""How much answers depend on the traces before them, of backbone and adapted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.four_cells import BOTH, READS, WRITES
from service.report.material import Evaluated, Material
from service.report.section import Cell, Missing, Picture, Run, Section, Table, change, interval, number, runs_of
from service.report.svg import ACCENT, INK, MUTED, PAPER, picture, plain
from service.report.unmeasured import unmeasured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = ("early", "filler", "swapped", "forced", "paraphrase")
_WHO = {
    BOTH: "own traces, read by itself",
    READS: "the backbone's traces, read by itself",
    WRITES: "own traces, read by the backbone",
}
_WHO["faithfulness_gold_traces"] = "gold traces, read by itself"


def dependence(material: Material) -> Section:
    read = [one for measure in _WHO for one in material.rows(measure)]
    shown = [one for one in material.rows(BOTH) if one.is_measurable]
    missing: tuple[Missing, ...] = ()
    if not read:
        missing = (unmeasured(material, "Whether answers depend on their traces is not stored.", BOTH),)
    return Section(
        "dependence",
        "Do answers depend on the reasoning before them?",
        "A bar is the share of right answers that change when the trace is cut short, emptied, swapped or spoilt, above what a "
        "paraphrase changes: 1 is an answer that rests on its trace, 0 one that ignores it.",
        "A high bar does not say that the trace is right, only that it is used; items that are answered wrongly with their whole "
        "trace are not counted.",
        pictures=(_bars(shown),) if shown else (),
        tables=(_table(read),) if read else (),
        missing=missing,
        runs=runs_of(one.run_id for one in read),
    )


def _bars(read: Sequence[Evaluated]) -> Picture:
    names = [plain(one.task, 40) for one in read]
    base, adapted = ([float(one.row[side]) for one in read] for side in ("base", "adapted"))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = [float(place) for place in range(len(read))]
        before = axes.barh([place - 0.2 for place in places], base, 0.36, color=PAPER, edgecolor=INK, label="backbone")
        after = axes.barh([p + 0.2 for p in places], adapted, 0.36, color=ACCENT, edgecolor=INK, hatch="///", label="adapted")
        for bars in (before, after):
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
        axes.axvline(0, linewidth=0.8, color=MUTED)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(min(0.0, *base, *adapted), max(1.0, *base, *adapted) * 1.08)
        axes.set_xlabel("dependence of the answer on its own trace (0 none, 1 full)")
        figure.legend(loc="outside upper right", ncols=2)

    told = "; ".join(f"{n}: backbone {b:.2f}, adapted {a:.2f}" for n, b, a in zip(names, base, adapted, strict=True))
    return picture("dependence", 6.6, 1.1 + 0.5 * len(read), f"Dependence of answers on their traces. {told}.", draw)


def _table(read: Sequence[Evaluated]) -> Table:
    def row(one: Evaluated) -> tuple[Cell, ...]:
        if not one.is_measurable:
            why = f"not measurable: {one.row['not_measurable']}"
            return (one.task, _WHO[one.measure], why, *["-"] * (3 + len(_PARTS)), Run(one.run_id))
        parts = tuple(number(one.row["adapted_parts"].get(part), 2) for part in _PARTS)
        values = (number(one.row["base"]), number(one.row["adapted"]), change(one.row["change"]))
        return (one.task, _WHO[one.measure], *values, interval(one.row["low"], one.row["high"]), *parts, Run(one.run_id))

    parts = ("cut short", "filler", "swapped", "spoilt", "paraphrase (noise)")
    head = ("task", "traces", "backbone", "adapted", "change", "95 % interval", *(f"adapted: {part}" for part in parts), "run")
    return Table("Dependence, and the shares of answers that each change of the trace changes", head, tuple(map(row, read)))
