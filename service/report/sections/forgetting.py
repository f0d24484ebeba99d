"""The forgetting matrix: what each stage of several domains in a row did to the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.report.material import Material, Matrix
from service.report.section import Cell, Missing, Picture, Section, Table, change, number, runs_of
from service.report.svg import INK, PAPER, picture, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARKEST = 0.5  # a change of half of all items, or of half a nat


def forgetting(material: Material) -> Section:
    missing: tuple[Missing, ...] = ()
    if not material.matrices:
        why = material.no_matrix or "No stage of another domain is known before or after this one."
        missing = (Missing(why, "graftline sequence FIRST.toml SECOND.toml"),)
    return Section(
        "forgetting",
        "What later domains did to earlier ones",
        "Row 0 is the frozen backbone and each row below it a stage; a number is the score of its column after that stage, the "
        "darker the further from the backbone, and hatched where it was higher before: read a column downwards to see what was "
        "forgotten.",
        "A matrix says what these fits did in this order; another order, and another seed, forget differently.",
        pictures=tuple(_heat(matrix, index) for index, matrix in enumerate(material.matrices)),
        tables=tuple(_transfer(matrix) for matrix in material.matrices),
        notes=tuple(f"{matrix.title}: {matrix.source}" for matrix in material.matrices),
        missing=missing,
        runs=runs_of(run_id for matrix in material.matrices for run_id in matrix.run_ids),
    )


def _columns(matrix: Matrix) -> list[dict[str, Any]]:
    return [*matrix.told["domains"], *matrix.told["retention"]]


def _heat(matrix: Matrix, index: int) -> Picture:
    columns, scores = _columns(matrix), matrix.told["scores"]
    names = [plain(column["task"], 24) for column in columns]
    own = [plain(column["task"], 24) for column in matrix.told["domains"]]
    stages = ["0: backbone", *(f"{number}: {task}" for number, task in enumerate(own, start=1))]

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        for row, line in enumerate(scores):
            for place, score in enumerate(line):
                moved = score - scores[0][place]
                strength = min(1.0, abs(moved) / _DARKEST)
                corner = (place - 0.48, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=INK, alpha=0.75 * strength, linewidth=0))
                if any(score < before[place] for before in scores[:row]):
                    # The hatch keeps to the lower edge, so that the number stays readable.
                    strip = Rectangle(
                        (place - 0.48, row + 0.28), 0.96, 0.18, fill=False, hatch="////", edgecolor=INK, linewidth=0
                    )
                    axes.add_patch(strip)
                colour = PAPER if strength > 0.6 else INK
                axes.text(place, row - 0.06, f"{score:.2f}".replace("-", "−"), ha="center", va="center", fontsize=8, color=colour)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(stages) - 0.5, -0.5)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(stages)), stages)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_title(plain(matrix.title, 90), loc="left")

    rows = "; ".join(f"{stage}: " + ", ".join(f"{v:.2f}" for v in line) for stage, line in zip(stages, scores, strict=True))
    alt = f"Scores after each stage, columns {', '.join(names)}. {rows}."
    width = min(9.0, 1.9 + 0.72 * len(names))
    return picture(f"matrix-{index}", width, 1.3 + 0.42 * len(stages), alt, draw)


def _transfer(matrix: Matrix) -> Table:
    intervals = matrix.told.get("numbers")
    if intervals:
        rows: list[tuple[Cell, ...]] = [
            (name.replace("_", " "), _value(name, found["value"]), _value(name, found["low"]), _value(name, found["high"]))
            for name, found in intervals.items()
        ]
        return Table(f"{matrix.title}, with 95 % intervals over other items", ("", "value", "from", "to"), tuple(rows))
    over = matrix.told["denominators"]
    told = [(name.replace("_", " "), _value(name, value), over.get(name, "")) for name, value in matrix.told["transfer"].items()]
    return Table(matrix.title, ("", "value", "mean over"), tuple(told))


def _value(name: str, value: float | None) -> Cell:
    return number(value) if "accuracy" in name else change(value)
