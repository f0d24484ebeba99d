"""Changes with their intervals, one below the other, each beside the place that it must lie right of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.report.section import Picture
from service.report.svg import ACCENT, FAINT, INK, MUTED, PAPER, picture, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"pass": ("o", ACCENT), "inconclusive": ("o", PAPER), "fail": ("X", INK), "": ("s", ACCENT)}
_TOLD = {"pass": "passed", "inconclusive": "undecided", "fail": "failed"}


@dataclass(frozen=True)
class Line:
    """`verdict`: pass, inconclusive, fail, or nothing where nothing was tested; `bound`: what the interval must lie right of."""

    name: str
    change: float
    low: float | None
    high: float | None
    bound: float | None = None
    verdict: str = ""
    told: str = ""  # beside it, on the right
    apart: bool = False  # below a gap


def forest(name: str, panels: Sequence[tuple[str, Sequence[Line]]], alt: str, width: float = 7.4) -> Picture:
    """One panel a unit, named by it."""
    heights = [len(lines) + 0.6 * sum(line.apart for line in lines) for _, lines in panels]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [h + 1.2 for h in heights]})
        for (axes,), (unit, lines) in zip(grid, panels, strict=True):
            _panel(axes, unit, lines)

    return picture(name, width, 0.35 + sum(0.3 * height + 0.55 for height in heights), alt, draw)


def said(lines: Sequence[Line]) -> str:
    """The same in words, for who cannot see it."""
    parts = []
    for line in lines:
        ends = f" [{line.low:+.3f}, {line.high:+.3f}]" if _drawn(line) else ""
        told = f", {_TOLD[line.verdict]}" if line.verdict else ""
        parts.append(f"{line.name} {line.change:+.3f}{ends}{told}")
    return "; ".join(parts)


def _panel(axes: Axes, unit: str, lines: Sequence[Line]) -> None:
    places, place = list[float](), 0.0
    for line in lines:
        place += 1.6 if line.apart and places else 1.0
        places.append(place)
    for place, line in zip(places, lines, strict=True):
        if line.low is not None and line.high is not None and _drawn(line):
            axes.plot([line.low, line.high], [place, place], color=INK, linewidth=1.6, solid_capstyle="butt", zorder=2)
            axes.plot([line.low, line.high], [place, place], linestyle="", marker="|", color=INK, markersize=7, zorder=2)
        marker, fill = MARKERS[line.verdict]
        axes.plot(
            [line.change], [place], linestyle="", marker=marker, markersize=7, markerfacecolor=fill, markeredgecolor=INK, zorder=3
        )
        if line.bound is not None:
            axes.plot([line.bound, line.bound], [place - 0.38, place + 0.38], color=MUTED, linewidth=2.4, zorder=1)
        if line.told:
            told = plain(line.told)
            axes.annotate(told, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=MUTED)
    axes.axvline(0, linewidth=0.8, linestyle=":", color=MUTED, zorder=0)
    axes.set_yticks(places, [plain(line.name, 40) for line in lines])
    axes.set_ylim(places[-1] + 0.7, places[0] - 0.7)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(plain(unit, 90))
    axes.margins(x=0.06)


def _drawn(line: Line) -> bool:
    return all(end is not None and math.isfinite(end) for end in (line.low, line.high))
