"""Drift of new rows against those a domain was fitted on, as the frozen backbone reads them: how likely, and where.

Two looks at what is asked, never at the answer. The log-probability of the text, a mean over its tokens, in a two-sample test
(Kolmogorov and Smirnov): what the backbone finds stranger, or plainer. And the mean of its hidden states at two thirds of the
depth, by the maximum mean discrepancy under a Gaussian kernel of the median width (Gretton et al. 2012), whose p-value comes from
permutations. A drift says that the rows are of another kind, and not that the champion fails on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adapters.backbone import Backbone
from adapters.whole_file import written_whole
from engine.engine import Continuation
from engine.inspect import Inspector
from evaluation.significance import holm
from evaluation.task import Example, question_text
from tuning.new_data.drawn import one_a_group

# Legend: N rows of one side, M of both, H hidden

READ_ROWS, READ_TOKENS = 200, 256  # of each side, one a group, drawn at random; of a row
DEPTH = 2 / 3  # of the layer whose states are taken
PERMUTATIONS = 999
LEAST_ROWS = 8  # of each side, of as many groups
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Rows as the backbone reads them: nats per token, and mean states."""

    nats_N: Floats
    states_NH: Floats


@dataclass(frozen=True)
class Drift:
    """`likelihood` is the mean change, new minus old, in nats per token; p-values are adjusted for there being two (Holm)."""

    rows: tuple[int, int]  # old, new
    likelihood: float
    likelihood_p: float
    mmd: float  # squared, unbiased: about 0 where nothing drifted, and then as often below it
    mmd_p: float


def read_side(engine: Inspector, backbone: Backbone, rows: Sequence[Example], seed: int = 0) -> Side:
    """One row a group, at most READ_ROWS of them, drawn by the seed; at most READ_TOKENS of each."""
    rows = one_a_group(rows, READ_ROWS, f"drift/{seed}")
    opening = tuple(backbone.user_header) or (int(backbone.tokenizer.eos_token_id),)
    room = min(READ_TOKENS, backbone.context_length - len(opening))
    asked = [Continuation(opening, tuple(backbone.encode(question_text(row)))[:room]) for row in rows]
    nats = [sum(tokens) / len(tokens) for tokens in engine.score(asked)]
    layer = round(DEPTH * (len(backbone.layers) - 1))
    states = engine.hidden_states(asked, [None] * len(asked), [layer])
    return Side(np.array(nats), np.stack([one[0, 1:].mean(0).double().numpy() for one in states]))


def drift(old: Side, new: Side, seed: int = 0) -> Drift:
    sizes = (len(old.nats_N), len(new.nats_N))
    if min(sizes) < LEAST_ROWS:
        raise ValueError(f"A drift needs {LEAST_ROWS} rows on both sides, but got {sizes[0]} and {sizes[1]}. Add rows.")
    likelihood_p = float(stats.ks_2samp(old.nats_N, new.nats_N).pvalue)
    mmd, mmd_p = mean_discrepancy(old.states_NH, new.states_NH, seed)
    adjusted = holm({"likelihood": likelihood_p, "mmd": mmd_p})
    change = float(new.nats_N.mean() - old.nats_N.mean())
    return Drift(sizes, change, adjusted["likelihood"], mmd, adjusted["mmd"])


def mean_discrepancy(old_NH: Floats, new_NH: Floats, seed: int = 0) -> tuple[float, float]:
    """The unbiased squared MMD and its permutation p-value, which is at least 1 / (PERMUTATIONS + 1)."""
    both_MH = np.concatenate([old_NH, new_NH])
    squares_M = (both_MH**2).sum(1)
    apart_MM = np.maximum(squares_M[:, None] + squares_M[None] - 2 * both_MH @ both_MH.T, 0.0)
    width = float(np.median(apart_MM[np.triu_indices(len(both_MH), 1)])) or 1.0
    kernel_MM = np.exp(-apart_MM / width)
    np.fill_diagonal(kernel_MM, 0.0)
    is_new_M = np.arange(len(both_MH)) >= len(old_NH)

    def squared(is_new_PM: NDArray[np.bool_]) -> Floats:
        new_PM, old_PM = is_new_PM.astype(float), (~is_new_PM).astype(float)
        count, others = int(is_new_PM[0].sum()), int((~is_new_PM[0]).sum())
        among_new = ((new_PM @ kernel_MM) * new_PM).sum(1) / (count * (count - 1))
        among_old = ((old_PM @ kernel_MM) * old_PM).sum(1) / (others * (others - 1))
        found: Floats = among_new + among_old - 2 * ((new_PM @ kernel_MM) * old_PM).sum(1) / (count * others)
        return found

    rng = np.random.default_rng(seed)
    drawn = squared(np.stack([rng.permutation(is_new_M) for _ in range(PERMUTATIONS)]))
    found = float(squared(is_new_M[None])[0])
    return found, (1 + int((drawn >= found - 1e-12).sum())) / (1 + PERMUTATIONS)


def drift_picture(old: Side, new: Side, found: Drift, file: Path) -> Path:
    """Writes a PNG: how likely both sides are to the backbone, and their states on the two directions that vary most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    edges = np.histogram_bin_edges(np.concatenate([old.nats_N, new.nats_N]), bins=20)
    named = (("fitted on", old, "o", "tab:blue"), ("new", new, "x", "tab:orange"))
    for label, side, _, colour in named:
        left.hist(side.nats_N, edges, density=True, histtype="step", linewidth=1.6, color=colour, label=label)
    left.set_xlabel("log-probability under the backbone (nats a token)")
    left.set_title(f"likelihood: {found.likelihood:+.3f}, p = {found.likelihood_p:.3g}", fontsize=10)
    both_MH = np.concatenate([old.states_NH, new.states_NH])
    centre_H = both_MH.mean(0)
    axes_2H = np.linalg.svd(both_MH - centre_H, full_matrices=False)[2][:2]
    for label, side, marker, colour in named:
        places_N2 = (side.states_NH - centre_H) @ axes_2H.T
        right.scatter(places_N2[:, 0], places_N2[:, -1], s=14, marker=marker, color=colour, label=label, alpha=0.7)
    right.set_xlabel("mean hidden states, first two principal directions")
    right.set_title(f"distance (MMD²): {found.mmd:.3g}, p = {found.mmd_p:.3g}", fontsize=10)
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.set_yticks([])
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file
