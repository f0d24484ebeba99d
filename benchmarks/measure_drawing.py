"""Draws what benchmarks/measure_pictures.py read: left what a measure is made of, right the change with its interval. In grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.whole_file import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SIDES = {"backbone": ("0.15", "o", ""), "zeros": ("0.55", "s", "////"), "damaged": ("0.85", "^", "....")}
NAMES = {"backbone": "backbone", "zeros": "adapter of zeros", "damaged": "damaged adapter"}
Numbers = Mapping[str, Any]
Draw = Callable[["Axes", Numbers], None]
_DPI, _GREYS = 90, 16


def mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def of(numbers: Numbers, side: str, part: str) -> Sequence[float | None]:
    found: Sequence[float | None] = numbers["values"][side] if part == "value" else numbers["parts"][side].get(part, ())
    return found


@dataclass(frozen=True)
class Bars:
    """The means of some parts."""

    parts: tuple[str, ...]
    unit: str = "share"

    def __call__(self, axes: Axes, numbers: Numbers) -> None:
        columns(axes, {part: {side: mean(of(numbers, side, part)) for side in SIDES} for part in self.parts})
        axes.set_ylabel(self.unit, fontsize=8)


@dataclass(frozen=True)
class Items:
    """Every item of a part, from the lowest to the highest."""

    part: str
    unit: str

    def __call__(self, axes: Axes, numbers: Numbers) -> None:
        for side, (color, marker, _) in SIDES.items():
            known = sorted(value for value in of(numbers, side, self.part) if value is not None)
            axes.plot(range(1, len(known) + 1), known, **_line(color, marker, 3))
        axes.set_xlabel("items, sorted", fontsize=8)
        axes.set_ylabel(self.unit, fontsize=8)


def budgets(axes: Axes, numbers: Numbers) -> None:
    names = [part for part in numbers["parts"]["backbone"] if part.startswith("right_at_")]
    _curves(axes, numbers, names, [name.removeprefix("right_at_") for name in names], "tokens of trace before the answer")


def depths(axes: Axes, numbers: Numbers) -> None:
    levels = sorted({depth for depth in of(numbers, "backbone", "depth") if depth is not None})
    for side, (color, marker, _) in SIDES.items():
        pairs = list(zip(of(numbers, side, "depth"), of(numbers, side, "value"), strict=True))
        shares = [mean([value for depth, value in pairs if depth == level]) for level in levels]
        axes.plot([str(int(level)) for level in levels], shares, **_line(color, marker, 5))
    axes.set_xlabel("depth", fontsize=8)
    axes.set_ylabel("share right in every step", fontsize=8)


def stairs(axes: Axes, numbers: Numbers) -> None:
    """The gold answer's log-probability after each step; an item that has no further step keeps its last level."""
    steps = sorted(part for part in numbers["parts"]["backbone"] if part.startswith("step_"))
    for side, (color, marker, _) in SIDES.items():
        level = [before or 0.0 for before in of(numbers, side, "l_0")]
        levels = [mean(level)]
        for step in steps:
            gains = of(numbers, side, step) or [None] * len(level)
            level = [before + (gain or 0.0) for before, gain in zip(level, gains, strict=True)]
            levels.append(mean(level))
        axes.plot(range(len(levels)), levels, **_line(color, marker, 5))
    axes.set_xticks(range(len(steps) + 1))
    axes.set_xlabel("steps that were read", fontsize=8)
    axes.set_ylabel("nats per answer token", fontsize=8)


def beliefs(axes: Axes, numbers: Numbers) -> None:
    found: dict[str, dict[str, float]] = {"fact": {}, "true belief": {}, "false belief": {}, "pair": {}, "quadruple": {}}
    for side in SIDES:
        kinds: dict[str, list[float | None]] = {"fact": [], "true belief": [], "false belief": []}
        rows = zip(*(of(numbers, side, part) for part in ("right", "true_belief", "false_belief")), strict=True)
        for right, true, false in rows:
            kinds["true belief" if true is not None else "false belief" if false is not None else "fact"].append(right)
        for name, values in kinds.items():
            found[name][side] = mean(values)
        for name in ("pair", "quadruple"):
            found[name][side] = mean(of(numbers, side, name))
    columns(axes, found)
    axes.set_ylabel("share right", fontsize=8)


def reliability(axes: Axes, numbers: Numbers) -> None:
    for side, (color, marker, _) in SIDES.items():
        pairs = sorted(zip(of(numbers, side, "confidence"), of(numbers, side, "right"), strict=True))
        parts = [pairs[place * len(pairs) // 4 : (place + 1) * len(pairs) // 4] for place in range(4)]
        points = [(mean([sure for sure, _ in part]), mean([right for _, right in part])) for part in parts if part]
        axes.plot([x for x, _ in points], [y for _, y in points], **_line(color, marker, 5))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xlabel("how sure (quarters of the items)", fontsize=8)
    axes.set_ylabel("share right", fontsize=8)


def shifts(axes: Axes, numbers: Numbers) -> None:
    Bars(tuple(part for part in numbers["parts"]["backbone"] if not part.startswith("_")), "share right")(axes, numbers)


_TRACE = Bars(("early", "filler", "swapped", "forced", "paraphrase"), "share of answers that change")
LOOKS: dict[str, Draw] = {
    "choice_accuracy": Items("margin", "margin over the best rival, nats"),
    "chain_likelihood": Items("value", "nats per token"),
    "generation": Bars(("value", "step_validity", "answer_right", "parsed")),
    "information_gain_external": stairs,
    "information_gain_self": stairs,
    "correction": Bars(("fast", "slow", "fast_parsed", "slow_parsed")),
    "shift_robustness": shifts,
    "faithfulness": _TRACE,
    "faithfulness_base_traces": _TRACE,
    "faithfulness_external": _TRACE,
    "faithfulness_gold_traces": _TRACE,
    "soft_thoughts": Bars(("early", "mean", "swapped", "permuted", "noise"), "share of answers that change"),
    "reasoned_choice": Bars(("value", "written_right", "step_validity", "parsed")),
    "rationality": Bars(("acceptability", "consistency", "relevance", "sufficiency"), "probability; nats"),
    "text_likelihood": Items("value", "nats per token"),
    "pair_preference": Bars(("value",)),
    "pair_margin": Items("value", "margin, nats"),
    "trace_length": Items("trace_tokens", "tokens before the answer"),
    "budget": budgets,
    "underthinking": Bars(("right", "left", "score")),
    "systematic_search": depths,
    "new_steps": Bars(("value", "revisitation", "self_loop")),
    "conclusion": Bars(("value", "answered", "right")),
    "latent_reasoning": Bars(("decoded", "greedy", "stepped")),
    "belief": beliefs,
    "brier_score": reliability,
    "candidate_log_probability": Items("value", "log-probability, nats"),
}


def draw_all(found: Numbers) -> list[Path]:
    """A PNG a measure, and their paths."""
    return [draw(name, numbers) for name, numbers in found.items()]


def draw(name: str, numbers: Numbers) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7.4, 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    LOOKS[name](left, numbers)
    left.set_title(f"{numbers['task']}: {numbers['damage'].replace('_', ' ')}", fontsize=9)
    for place, key, side in ((0, "zeros", "zeros"), (1, "change", "damaged")):
        middle, low, high = numbers[key]
        color, marker, _ = SIDES[side]
        whiskers = [[middle - low], [high - middle]]
        right.errorbar([place], [middle], yerr=whiskers, fmt=marker, color="0.1", markerfacecolor=color, capsize=4)
    right.axhline(0, linewidth=0.8, linestyle=":", color="0.4")
    right.set_xticks([0, 1], ["zeros", "damaged"], fontsize=8)
    right.set_xlim(-0.6, 1.6)
    right.set_title(f"change, 95 %, {numbers['n']} items", fontsize=9)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
    handles, labels = _legend()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    file = IMAGES / f"{name}.png"
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    with written_whole(file) as part:
        Image.open(drawn).convert("L").quantize(_GREYS).save(part, format="PNG", optimize=True)
    return file


def columns(axes: Axes, found: Mapping[str, Mapping[str, float]]) -> None:
    """Three bars for each name; nothing where nothing is measurable."""
    for shift, (side, (color, _, hatch)) in enumerate(SIDES.items()):
        heights = [0.0 if math.isnan(values[side]) else values[side] for values in found.values()]
        places = [place + 0.27 * (shift - 1) for place in range(len(found))]
        axes.bar(places, heights, width=0.25, color=color, edgecolor="0.1", linewidth=0.6, hatch=hatch)
        for place, values in zip(places, found.values(), strict=True):
            if math.isnan(values[side]):
                axes.text(place, 0.02, "n.m.", fontsize=6, ha="center", rotation=90)
    axes.set_xticks(range(len(found)), [name.replace("_", " ") for name in found], fontsize=8)
    axes.axhline(0, linewidth=0.6, color="0.3")


def _curves(axes: Axes, numbers: Numbers, parts: Sequence[str], ticks: Sequence[str], label: str) -> None:
    for side, (color, marker, _) in SIDES.items():
        axes.plot(list(ticks), [mean(of(numbers, side, part)) for part in parts], **_line(color, marker, 5))
    axes.set_xlabel(label, fontsize=8)
    axes.set_ylabel("share right", fontsize=8)


def _line(color: str, marker: str, size: int) -> dict[str, Any]:
    return {
        "color": "0.35",
        "linewidth": 0.8,
        "marker": marker,
        "markersize": size,
        "markerfacecolor": color,
        "markeredgecolor": "0.1",
        "markeredgewidth": 0.6,
    }


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **{**_line(color, marker, 6), "linestyle": ""}) for color, marker, _ in SIDES.values()]
    return handles, list(NAMES.values())
