"""Whether confidence tells right from wrong: the area under the ROC curve, with an interval that respects clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Discrimination(NamedTuple):
    """`auroc`: how often something right has a higher confidence than something wrong, ties as halves; 0.5 is chance.

    `within`: the same over pairs of one cluster alone, None where no cluster has both.
    """

    auroc: float
    low: float
    high: float
    within: float | None


def discrimination(
    confidence: Sequence[float], right: Sequence[bool], clusters: Sequence[str], seed: int = 0, draws: int = DRAWS
) -> Discrimination:
    """With its 95 % percentile interval over draws of whole clusters. ValueError where nothing is right, or nothing wrong.

    A draw without both kinds says nothing and counts as chance. Few clusters of one kind make the interval too narrow: who goes
    by its ends asks for several of each.
    """
    said, was = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if was.all() or not was.any():
        raise ValueError(f"An AUROC compares right with wrong, but {was.sum()} of {len(was)} are right. Read other items.")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    wins = np.sign(said[was][:, None] - said[~was][None, :]) / 2 + 0.5
    # How often the rights of one cluster (C) are above the wrongs of another (K), and how many such pairs there are.
    member_NC = np.eye(len(names))[index]
    won_CK = member_NC[was].T @ wins @ member_NC[~was]
    pairs_CK = np.outer(member_NC[was].sum(0), member_NC[~was].sum(0))
    rng = np.random.default_rng(seed)
    times_DC = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(np.float64)
    won_D, pairs_D = (np.einsum("dc,ck,dk->d", times_DC, matrix, times_DC, optimize=True) for matrix in (won_CK, pairs_CK))
    drawn_D = np.divide(won_D, pairs_D, out=np.full(draws, 0.5), where=pairs_D > 0)
    low, high = np.quantile(drawn_D, (0.025, 0.975))
    own = float(np.trace(pairs_CK))
    within = float(np.trace(won_CK)) / own if own else None
    return Discrimination(float(won_CK.sum() / pairs_CK.sum()), float(low), float(high), within)
