"""Matplotlib's figures inside a page: text that stays text, colours that follow the page, the same bytes every time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from service.report.section import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is drawn in these becomes the page's own colour of that name, light or dark.
INK, MUTED, FAINT, PAPER, ACCENT = "#111213", "#5c5d5e", "#c3c4c5", "#fdfcfb", "#1b5e9b"
_NAMES = {INK: "ink", MUTED: "muted", FAINT: "faint", PAPER: "paper", ACCENT: "accent"}
BACKBONE, ADAPTED = "backbone", "adapted"  # drawn hollow, and filled
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_SETTINGS: dict[Any, object] = {  # matplotlib types its names one by one
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "hatch.color": INK,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.4,
}


def picture(name: str, width: float, height: float, alt: str, draw: Callable[[Figure], None]) -> Picture:
    """`draw` fills a figure of that many inches; `name` is its own within the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(_inline(drawn.getvalue(), name, alt), alt)


def plain(text: str, most: int = 60) -> str:
    """A name as a picture can hold it: one line, without control characters, cut where it is long."""
    kept = _CONTROL.sub(" ", text)
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def _inline(svg: str, name: str, alt: str) -> str:
    body = svg[svg.index("<svg") :]
    opening, _, rest = body.partition(">")
    found = re.search(r'viewBox="[\d. -]+"', opening)
    assert found is not None
    width = float(found[0].split('"')[1].split()[2])
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", rest)
    rest = re.sub(r'(url\(|href=")#', rf"\1#{name}-", rest)
    for colour, word in _NAMES.items():
        rest = re.sub(colour, f"var(--{word})", rest, flags=re.I)
    label = escape(alt, quote=True)
    return f'<svg role="img" aria-label="{label}" {found[0]} style="max-width: {width:.0f}pt">{rest}'
