"""The information-gain staircase of example traces, before and after: which steps carry the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from shlex import quote
from typing import TYPE_CHECKING, Any

from service.report.forest import Line, forest, said
from service.report.material import Evaluated, Material
from service.report.section import (
    Cell,
    Example,
    Missing,
    Number,
    Picture,
    Run,
    Section,
    Steps,
    Table,
    change,
    interval,
    number,
    runs_of,
)
from service.report.svg import ACCENT, INK, MUTED, PAPER, picture
from service.report.unmeasured import unmeasured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTSIDE, INSIDE = "information_gain_external", "information_gain_self"
_CAUSES = {(True, False): "memorised", (False, True): "hollowed", (True, True): "memorised and hollowed", (False, False): "-"}


def staircase(material: Material) -> Section:
    read = [*material.rows(OUTSIDE), *material.rows(INSIDE)]
    missing, examples, notes = list[Missing](), tuple[Example, ...](), tuple[str, ...]()
    if material.traces is not None:
        examples = tuple(_examples(material.traces.document))
        floor = material.traces.document["floor"]
        notes = (
            f"An answer less likely than l = {floor:g} is told as {floor:g}: how hopeless it is says nothing.".replace("-", "−"),
        )
    elif material.measured_as is not None:
        missing.append(Missing("No example traces are stored.", f"graftline report {quote(material.subject)} --examples 2"))
    if not read:
        missing.append(unmeasured(material, "The gain over all items is not stored."))
    measurable = [one for one in read if one.is_measurable]
    return Section(
        "staircase",
        "Which steps carry the answer",
        "Each stair is one step of the trace, and its height what the step adds to the log-probability of the gold answer: the "
        "steps that carry the answer are the tall ones, marked ◆ in the tables; a flat stair says nothing about it.",
        "The examples are the first items of their task, neither typical nor worst; a step that is right and redundant is flat "
        "too, and a step that states the answer is tall whatever it was derived from.",
        pictures=(_means(measurable),) if measurable else (),
        tables=(_table(read),) if read else (),
        examples=examples,
        notes=notes,
        missing=tuple(missing),
        runs=runs_of([material.traces.run_id if material.traces else None, *(one.run_id for one in read)]),
    )


def _means(read: Sequence[Evaluated]) -> Picture:
    lines = [
        Line(
            f"{one.task}, {'its traces' if one.measure == OUTSIDE else 'its reading'}",
            one.row["change"],
            one.row["low"],
            one.row["high"],
        )
        for one in read
    ]
    title = "change of the information gain, nats per answer token (95 % intervals)"
    return forest("gain", [(title, lines)], f"Change of the information gain: {said(lines)}.")


def _table(read: Sequence[Evaluated]) -> Table:
    def row(one: Evaluated) -> tuple[Cell, ...]:
        before, after, told = one.row["base_parts"], one.row["adapted_parts"], one.row["summary"]
        what = "own traces, read by the backbone" if one.measure == OUTSIDE else "gold traces, read by itself"
        if not one.is_measurable:
            return (one.task, what, *["-"] * 9, f"not measurable: {one.row['not_measurable']}", Run(one.run_id))
        rose, fell = (told.get("change_l_0_low") or 0) > 0, (told.get("change_l_t_high") or 0) < 0
        return (
            one.task,
            what,
            *(number(side.get(part)) for part in ("l_0", "l_t", "informative") for side in (before, after)),
            change(one.row["change"]),
            interval(one.row["low"], one.row["high"]),
            number(told.get("length_ratio"), 2),
            _CAUSES[rose, fell] if (one.row["high"] or 0) < 0 else "-",
            Run(one.run_id),
        )

    sides = [f"{part}, {side}" for part in ("l₀", "lₜ", "informative steps") for side in ("backbone", "adapted")]
    head = ("task", "traces", *sides, "change of the gain", "95 % interval", "length ratio", "why it fell", "run")
    title = "Information gain over all items: l₀ before any step, lₜ after the last, in nats per answer token"
    return Table(title, head, tuple(map(row, read)))


def _examples(document: Mapping[str, Any]) -> list[Example]:
    found, least = [], float(document["informative"])
    for place, task in enumerate(document["tasks"]):
        for index, one in enumerate(task["examples"]):
            picture = _picture(f"stairs-{place}-{index}", one, task["task"])
            sides = (
                _steps("Before: the backbone", one["before"], least),
                _steps("After: the adapted model", one["after"], least),
            )
            found.append(
                Example(_title(task["task"], one, least), one["question"], one["gold"], picture, sides, index == 0 and place < 2)
            )
    return found


def _title(task: str, one: Mapping[str, Any], least: float) -> str:
    """What became of it, so that a folded example tells it too."""
    name = one["id"] if one["id"].startswith(task) else f"{task}: {one['id']}"
    told = []
    for word in ("before", "after"):
        found, right = one[word]["by_backbone"], "right" if one[word]["is_right"] else "wrong"
        carrying = [str(place) for place, (was, now) in enumerate(pairwise(found), start=1) if now - was > least]
        told.append(f"{word} {right}, carried by {'step ' + ', '.join(carrying) if carrying else 'no step'}")
    return f"{name} ({'; '.join(told)})"


def _steps(title: str, side: Mapping[str, Any], least: float) -> Steps:
    outside, inside = side["by_backbone"], side["by_adapted"]
    rows: list[tuple[Cell, ...]] = [("0", "", "(the question alone)", change(outside[0], 2), "", *_own(inside, 0))]
    for place, (step, (was, now)) in enumerate(zip(side["steps"], pairwise(outside), strict=True), start=1):
        mark = "◆" if now - was > least else ""
        rows.append((str(place), mark, step, change(now, 2), change(now - was, 2), *_own(inside, place)))
    head = ("step", "", "what it says", "l", "adds", *(("l, its own reading",) if inside else ()))
    word = "right" if side["is_right"] else "wrong"
    said = "gave no answer" if side["answer"] is None else f"answered “{side['answer']}”"
    return Steps(f"{title} {said}, {word}", Table("", head, tuple(rows)))


def _own(inside: Sequence[float], place: int) -> tuple[Number, ...]:
    return (change(inside[place], 2),) if inside else ()


def _picture(name: str, one: Mapping[str, Any], task: str) -> Picture:
    before, after = one["before"], one["after"]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        _stairs(panels[0], before["by_backbone"], "before: backbone writes", PAPER, "o")
        _stairs(panels[1], after["by_backbone"], "after: adapted model writes", ACCENT, "s")
        if after["by_adapted"]:
            own, places = after["by_adapted"], range(len(after["by_adapted"]))
            panels[1].step(places, own, where="mid", color=MUTED, linestyle="--", linewidth=1)
            panels[1].plot(
                places, own, linestyle="", marker="^", markersize=5, mfc=PAPER, mec=INK, label="the same, read by itself"
            )
            figure.legend(loc="outside lower right", ncols=2)
        panels[0].set_ylabel("l: log-probability of the gold\nanswer, nats per token")
        most = max(len(side["by_backbone"]) for side in (before, after))
        for axes in panels:
            axes.set_xlim(-0.5, most - 0.5)

    def told(side: Mapping[str, Any]) -> str:
        return ", ".join(f"{value:.2f}" for value in side["by_backbone"])

    alt = f"Staircase of an item of {task}. Before, l from step 0 on: {told(before)}. After: {told(after)}."
    return picture(name, 7.2, 2.3, alt, draw)


def _stairs(axes: Axes, found: Sequence[float], title: str, fill: str, marker: str) -> None:
    from matplotlib.ticker import MaxNLocator

    places = range(len(found))
    axes.step(places, found, where="mid", color=INK)
    axes.plot(
        places,
        found,
        linestyle="",
        marker=marker,
        markersize=6,
        mfc=fill,
        mec=INK,
        label="read by the backbone" if marker == "s" else None,
    )
    axes.axhline(0, linewidth=0.8, linestyle=":", color=MUTED)
    if len(found) > 1:
        gains = [now - was for was, now in pairwise(found)]
        tallest = max(range(len(gains)), key=gains.__getitem__)
        if gains[tallest] > 0.05:
            text = f"step {tallest + 1}: {gains[tallest]:+.2f}".replace("-", "−")
            axes.annotate(
                text, (tallest + 1, found[tallest + 1]), xytext=(0, 7), textcoords="offset points", fontsize=8, ha="center"
            )
    axes.set_title(title, loc="left")
    axes.set_xlabel("steps read")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
