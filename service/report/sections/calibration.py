"""Whether the model's confidence means what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.reliability import NUM_BINS, equal_mass_bins, excess_calibration_error
from evaluation.statistics import wilson
from service.report.material import Evaluated, Material
from service.report.section import Cell, Missing, Picture, Run, Section, Table, change, interval, number, runs_of
from service.report.svg import ACCENT, INK, MUTED, PAPER, picture
from service.report.unmeasured import unmeasured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURE = "brier_score"
_LEAST = 8  # items of a bin, where there are few
_SIDES = (("base", "backbone", PAPER, "o", "--"), ("adapted", "adapted", ACCENT, "s", "-"))


def calibration(material: Material) -> Section:
    read = material.rows(MEASURE)
    drawn = next((one for one in read if one.is_measurable and one.row["role"] == "report" and one.row.get("parts")), None)
    missing: tuple[Missing, ...] = ()
    if not read:
        missing = (unmeasured(material, "How sure the model is of its answers is not stored.", MEASURE),)
    return Section(
        "calibration",
        "Is its confidence deserved?",
        "Marks on the diagonal are answers that are right as often as the model is sure of them; below it the model is "
        "overconfident. A temperature T* above 1 says the same in one number.",
        "Confidence is over the closed set of options, not over what the model would write; bins of few items scatter, so the "
        "paired change of the Brier score decides, not the picture.",
        pictures=(_picture(drawn),) if drawn else (),
        tables=(_table(read),) if read else (),
        missing=missing,
        runs=runs_of(one.run_id for one in read),
    )


def _side(one: Evaluated, side: str) -> tuple[list[float], list[float]]:
    parts = one.row["parts"][side]
    return list(map(float, parts["confidence"])), list(map(float, parts["right"]))


def _picture(one: Evaluated) -> Picture:
    errors = {side: excess_calibration_error(*_side(one, side)) for side, *_ in _SIDES}
    items = len(_side(one, "base")[0])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], linewidth=0.8, linestyle=":", color=MUTED)
        for side, label, fill, marker, style in _SIDES:
            bins = equal_mass_bins(*_side(one, side), min(NUM_BINS, max(3, items // _LEAST)))
            ends = [wilson(round(found.accuracy * found.count), found.count) for found in bins]
            reach = [[max(0.0, found.accuracy - low) for found, (low, _) in zip(bins, ends, strict=True)]]
            reach.append([max(0.0, high - found.accuracy) for found, (_, high) in zip(bins, ends, strict=True)])
            axes.errorbar(
                [found.confidence for found in bins],
                [found.accuracy for found in bins],
                yerr=reach,
                marker=marker,
                linestyle=style,
                color=INK,
                ecolor=MUTED,
                elinewidth=0.8,
                mfc=fill,
                mec=INK,
                clip_on=False,
                label=f"{label}: {errors[side]:+.3f} beyond chance".replace("-", "−"),
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence in the chosen option (bins of equally many items)")
        axes.set_ylabel("share right")
        figure.legend(loc="outside lower center")

    told = "; ".join(f"{label}: calibration error {errors[side]:+.3f} beyond chance" for side, label, *_ in _SIDES)
    return picture("calibration", 4.8, 5.1, f"Accuracy by confidence on {items} items of {one.task}. {told}.", draw)


def _table(read: Sequence[Evaluated]) -> Table:
    def row(one: Evaluated) -> tuple[Cell, ...]:
        if not one.is_measurable:
            return (one.task, f"not measurable: {one.row['not_measurable']}", *["-"] * 9, Run(one.run_id))
        told = one.row["summary"]
        return (
            one.task,
            number(one.row["base"]),
            number(one.row["adapted"]),
            change(one.row["change"]),
            interval(one.row["low"], one.row["high"]),
            *(number(told.get(f"{side}_{part}"), 2) for part in ("temperature",) for side in ("base", "adapted")),
            *(number(told.get(f"{side}_{part}")) for part in ("reliability", "resolution") for side in ("base", "adapted")),
            Run(one.run_id),
        )

    pairs = [f"{part}, {side}" for part in ("T*", "reliability", "resolution") for side in ("backbone", "adapted")]
    head = ("task", "backbone", "adapted", "change", "95 % interval", *pairs, "run")
    return Table("Minus the Brier score: 0 is certain and right, −2 certain and wrong", head, tuple(map(row, read)))
