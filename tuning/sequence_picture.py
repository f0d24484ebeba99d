"""The heat map of a policy: the score after every stage, coloured by its change from the backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters.whole_file import written_whole
from tuning.sequence_matrix import PolicyMatrix

REASONING = "reasoning"
_DARKEST = 0.5  # a change of half of all items, or of half a nat


def heat_map(matrix: PolicyMatrix, title: str, file: Path) -> Path:
    """Writes a PNG and returns its path. Column 0 is the mean over the families; numbers tell what grey hides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [*matrix.matrix.domains, *matrix.matrix.retention]
    scores = matrix.matrix.scores
    names = [column.task for column in columns]
    if (mean := matrix.reasoning)[0] is not None:
        names, scores = [REASONING, *names], np.column_stack([np.array(mean, dtype=np.float64), scores])
    changes = scores - scores[:1]
    figure = Figure(figsize=(1.6 + 0.85 * len(names), 1.9 + 0.5 * len(scores)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(changes, cmap="RdBu", vmin=-_DARKEST, vmax=_DARKEST, aspect="auto")
    for (row, place), score in np.ndenumerate(scores):
        dark = abs(changes[row, place]) > 0.6 * _DARKEST
        axes.text(place, row, f"{score:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    stages = ["backbone", *(f"{number}: {column.task}" for number, column in enumerate(matrix.matrix.domains, start=1))]
    axes.set_yticks(range(len(stages)), stages, fontsize=8)
    axes.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=axes, label="change from the backbone")
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file
