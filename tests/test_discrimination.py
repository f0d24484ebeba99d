"""Whether confidence tells right from wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.discrimination import discrimination


def drawn(size: int, gap: float, seed: int = 0) -> tuple[list[float], list[bool], list[str]]:
    """What is right has a confidence that is larger by the gap, in standard deviations; each item is a cluster of its own."""
    rng = np.random.default_rng(seed)
    right = rng.random(size) < 0.5
    return (rng.normal(size=size) + gap * right).tolist(), right.tolist(), [str(n) for n in range(size)]


def test_the_area_is_that_of_the_rank_sum() -> None:
    confidence, right, clusters = drawn(60, 1.0)
    confidence = [round(said, 1) for said in confidence]  # some are tied
    kinds = ([said for said, was in zip(confidence, right, strict=True) if was == kind] for kind in (True, False))
    ours, theirs = discrimination(confidence, right, clusters), stats.mannwhitneyu(*kinds, alternative="greater")
    assert ours.auroc == pytest.approx(theirs.statistic / (sum(right) * (len(right) - sum(right))))


def test_the_interval_holds_the_true_area_about_as_often_as_it_says() -> None:
    true = float(stats.norm.cdf(1 / np.sqrt(2)))
    found = [discrimination(*drawn(80, 1.0, seed), draws=200) for seed in range(150)]
    assert 0.9 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.99


def test_items_that_share_a_cluster_are_no_more_evidence_than_one() -> None:
    confidence, right, clusters = drawn(40, 1.0)
    once, thrice = discrimination(confidence, right, clusters), discrimination(confidence * 3, right * 3, clusters * 3)
    assert (thrice.auroc, thrice.low, thrice.high) == pytest.approx((once.auroc, once.low, once.high))


def test_within_a_cluster_its_own_rights_and_wrongs_alone_are_compared() -> None:
    # What is easy is said more surely; of one question, the wrong answer is the surer one.
    found = discrimination([0.8, 0.9, 0.1, 0.2, 0.85], [True, False, True, False, True], ["easy", "easy", "hard", "hard", "x"])
    assert found.within == 0.0 and found.auroc == pytest.approx(1 / 3)
    assert discrimination([0.1, 0.2], [False, True], ["a", "b"]).within is None


def test_where_all_is_right_there_is_no_area() -> None:
    with pytest.raises(ValueError, match="compares right with wrong, but 2 of 2 are right"):
        discrimination([0.1, 0.2], [True, True], ["a", "b"])
