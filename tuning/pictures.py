"""The Pareto picture of a study: domain gain against retention, feasible or not, with the chosen trial marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from adapters.whole_file import written_whole

if TYPE_CHECKING:
    from tuning.candidates import Candidate


def pareto_picture(study: optuna.Study, candidates: Sequence[Candidate], file: Path) -> Path:
    """Writes a PNG and returns its path. Readable in grey: shape says feasible or not, numbers name the trials."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for feasible, marker, label in ((True, "o", "all families within their margin"), (False, "x", "a family lost too much")):
        chosen = [candidate for candidate in candidates if candidate.feasible is feasible]
        axes.scatter([c.domain_gain for c in chosen], [c.retention for c in chosen], marker=marker, label=label)
    for candidate in candidates:
        axes.annotate(
            str(candidate.trial), (candidate.domain_gain, candidate.retention), xytext=(4, 4), textcoords="offset points"
        )
    if candidates:
        first = candidates[0]
        axes.scatter([first.domain_gain], [first.retention], s=180, facecolors="none", edgecolors="black", label="chosen")
    axes.axhline(0, linewidth=0.8, linestyle=":", color="grey")
    axes.axvline(0, linewidth=0.8, linestyle=":", color="grey")
    axes.set_xlabel("domain gain (accuracy, adapted minus backbone)")
    axes.set_ylabel("retention (mean loss in margins, 0 is none)")
    axes.set_title(f"study {study.study_name}")
    axes.legend(loc="lower left", fontsize=8)
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file
