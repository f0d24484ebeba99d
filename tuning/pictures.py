"""The pictures of a study: domain gain against retention, and which settings each of the two hangs on. Readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from adapters.whole_file import written_whole
from tuning.hypervolume import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tuning.candidates import Candidate

PARETO, IMPORTANCES = "pareto.png", "importances.png"
_NAMED = 30  # trials whose numbers stand beside their marks, from the best on


def pareto_picture(study: optuna.Study, candidates: Sequence[Candidate], file: Path) -> Path:
    """Writes a PNG and returns its path. Shape says feasible or not; trials without values are told in the legend.

    `candidates` are in the order in which they are gated: the first is marked as chosen.
    """
    figure = _figure(6.4, 4.6)
    axes = figure.add_subplot()
    for feasible, marker, label in (
        (True, "o", "feasible: all families within their margin"),
        (False, "x", "a family lost too much"),
    ):
        shown = [candidate for candidate in candidates if candidate.feasible is feasible]
        axes.scatter([c.domain_gain for c in shown], [c.retention for c in shown], color="0.25", marker=marker, label=label)
    best = front(candidates)
    if len(best) > 1:
        axes.step(
            [c.domain_gain for c in best],
            [c.retention for c in best],
            where="post",
            color="0.6",
            linewidth=1,
            label="Pareto front",
        )
    for candidate in candidates[:_NAMED]:
        place = (candidate.domain_gain, candidate.retention)
        axes.annotate(str(candidate.trial), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    if candidates:
        first = candidates[0]
        label = f"chosen: trial {first.trial}"
        axes.scatter([first.domain_gain], [first.retention], s=180, facecolors="none", edgecolors="black", label=label)
    _tell_without_values(axes, study)
    axes.axhline(0, linewidth=0.8, linestyle=":", color="grey")
    axes.axvline(0, linewidth=0.8, linestyle=":", color="grey")
    axes.set_xlabel("domain gain (share of items right, adapted minus backbone)")
    axes.set_ylabel("retention (mean loss in margins, 0 is none)")
    axes.set_title(f"study {study.study_name}")
    axes.legend(loc="lower left", fontsize=8)
    return _written(figure, file)


def importances_picture(importances: Mapping[str, Mapping[str, float]], name: str, file: Path) -> Path:
    """Writes a PNG of bars, a panel an objective, and returns its path."""
    settings = sorted({setting for shares in importances.values() for setting in shares}, reverse=True)
    figure = _figure(8.0, 1.4 + 0.32 * len(settings))
    panels = figure.subplots(1, len(importances), sharey=True, squeeze=False)[0]
    for axes, (objective, shares) in zip(panels, importances.items(), strict=True):
        bars = axes.barh(settings, [shares.get(setting, 0.0) for setting in settings], color="0.75", edgecolor="black")
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set_xlim(0, 1.15)
        axes.set_xlabel("importance (shares of 1)")
        axes.set_title(objective, fontsize=10)
    figure.suptitle(f"study {name}: what each objective hangs on")
    return _written(figure, file)


def _tell_without_values(axes: Axes, study: optuna.Study) -> None:
    for state, word in ((TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
        numbers = [str(trial.number) for trial in study.get_trials(deepcopy=False, states=(state,))]
        if numbers:
            listed = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
            axes.plot([], [], linestyle="", marker="$-$", color="0.5", label=f"{word}, without values: {listed}")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _written(figure: Figure, file: Path) -> Path:
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file
