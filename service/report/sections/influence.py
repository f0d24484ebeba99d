"""What the training rows cost: influence on the protected families, and the removal experiment that tests it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.report.forest import Line, forest, said
from service.report.material import Material
from service.report.section import Cell, Missing, Number, Picture, Section, Table, change
from service.report.svg import ACCENT, INK, MUTED, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 15
_ARMS = {"worst": "the worst rows left out", "best": "the best rows left out"}


def influence(material: Material) -> Section:
    told = "What each training row does to reasoning is not stored for this recipe."
    head = (
        "influence",
        "What the data rows cost",
        "Rows are sorted by what training on them does to the protected families: below 0 a row raises their loss; the removal "
        "experiment below says whether leaving the worst ones out really keeps more.",
        "Scores order rows and do not say how much a row costs; they are of the recipe's own values, which the trial that was "
        "chosen may not share.",
    )
    if material.influences is None:
        return Section(*head, missing=(Missing(told, "graftline attribute RECIPE.toml"),))
    found = material.influences.told
    pictures, tables = [_curve(found["rows"])], [_rows(found["rows"])]
    missing = list[Missing]()
    if found["removal"]:
        pictures.append(_removal(found["removal"]))
    else:
        why = "The removal experiment is not made or not finished: the scores are alignments of gradients."
        missing.append(Missing(why, "graftline attribute RECIPE.toml"))
    notes = [*found["said"], f"Evidence: {found['evidence']}. Stored in {material.influences.source}, not in MLflow."]
    notes += [f"{name}: {below} of {len(found['rows'])} rows are below 0" for name, below in found["below_zero"].items()]
    return Section(*head, pictures=tuple(pictures), tables=tuple(tables), notes=tuple(notes), missing=tuple(missing))


def _curve(rows: Sequence[Mapping[str, Any]]) -> Picture:
    values = [float(row["retention"]) for row in rows]
    below = sum(value < 0 for value in values)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(1, len(values) + 1)
        axes.plot(places, values, color=INK)
        axes.fill_between(
            places, values, 0, where=[v < 0 for v in values], facecolor="none", edgecolor=MUTED, hatch="////", linewidth=0
        )
        axes.fill_between(places, values, 0, where=[v >= 0 for v in values], color=ACCENT, alpha=0.35, linewidth=0)
        axes.axhline(0, linewidth=0.8, color=MUTED)
        axes.set_xlabel(f"rows, the costliest first ({below} of {len(values)} below 0, hatched)")
        axes.set_ylabel("influence on retention\n(cosine)")

    ends = f"from {values[0]:+.3f} to {values[-1]:+.3f}"
    alt = f"Influence of {len(values)} training rows on retention, sorted, {ends}; {below} are below 0."
    return picture("influence", 6.6, 2.6, alt, draw)


def _removal(removal: Mapping[str, Any]) -> Picture:
    found = [(f"{_ARMS[arm]}, not random ones", one) for arm, one in removal["chains_against_random"].items()]
    found.append(("the fit, against the backbone", removal["chains_against_backbone"]))
    lines = [
        Line(name, one["change"], one["low"], one["high"], told=f"{len(one['by_seed'])} seeds")
        for name, one in found
        if one["change"] is not None
    ]
    title = "change of the protected chains, nats per token (95 % intervals)"
    return forest("removal", [(title, lines)], f"The removal experiment: {said(lines)}.")


def _rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    def row(one: Mapping[str, Any]) -> tuple[Cell, ...]:
        worst = min(one["families"], key=one["families"].__getitem__)
        tokens = Number(one["tokens"], str(one["tokens"]))
        return (
            one["row"],
            tokens,
            change(one["retention"]),
            change(one["domain"]),
            worst,
            change(one["families"][worst]),
            one["advice"],
        )

    head = ("row", "tokens", "retention", "domain", "worst family", "on it", "advice")
    return Table(f"The {min(_SHOWN, len(rows))} costliest of {len(rows)} rows", head, tuple(map(row, rows[:_SHOWN])))
