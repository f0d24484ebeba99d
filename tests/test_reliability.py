"""Proper scores and their parts, by hand; and a calibration error that knows what chance would give."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest

from evaluation.reliability import (
    best_temperature,
    brier,
    calibration_error,
    draw,
    equal_mass_bins,
    excess_calibration_error,
    log_probability,
    murphy,
)

CONFIDENCE, RIGHT = [0.9] * 5 + [0.6] * 5, [1.0, 1, 1, 0, 0] + [1.0, 1, 1, 1, 0]


def test_the_brier_score_of_several_classes_by_hand() -> None:
    assert brier([log(0.7), log(0.2), log(0.1)]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier([0.0, 0.0]) == pytest.approx(0.5)
    assert brier([-100.0, 0.0]) == pytest.approx(2.0)
    assert brier([0.0, -100.0]) == pytest.approx(0.0)


def test_the_log_probability_is_within_the_closed_set() -> None:
    assert log_probability([-7.0, -7.0]) == pytest.approx(-log(2))
    assert log_probability([log(0.02), log(0.06)]) == pytest.approx(log(0.25))


def test_the_temperature_of_a_model_that_is_surer_than_right() -> None:
    # A margin of 2 nats, right three times in four: sigmoid(2 / T) = 3 / 4, so T = 2 / log 3.
    scores = [[2.0, 0.0]] * 3 + [[0.0, 2.0]]
    assert best_temperature(scores) == pytest.approx(2 / log(3), rel=1e-3)
    assert best_temperature([[3 * value for value in row] for row in scores]) == pytest.approx(6 / log(3), rel=1e-3)


def test_a_calibrated_model_has_temperature_one() -> None:
    assert best_temperature([[log(3), 0.0]] * 3 + [[0.0, log(3)]]) == pytest.approx(1.0, rel=1e-3)


def test_what_is_never_wrong_or_knows_nothing_has_no_temperature() -> None:
    assert best_temperature([[1.0, 0.0]] * 4) is None
    assert best_temperature([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2) is None
    assert best_temperature([]) is None


def test_the_murphy_decomposition_by_hand() -> None:
    found = murphy(CONFIDENCE, RIGHT, count=2)
    assert found.reliability == pytest.approx(0.5 * 0.3**2 + 0.5 * 0.2**2)
    assert found.resolution == pytest.approx(0.01)
    assert found.uncertainty == pytest.approx(0.7 * 0.3)
    assert found.within == pytest.approx(0.0)


def test_the_parts_add_up_to_the_score_whatever_the_bins() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(103)
    was = (rng.random(103) < said).astype(float)
    found = murphy(said.tolist(), was.tolist())
    total = found.reliability - found.resolution + found.uncertainty + found.within
    assert total == pytest.approx(float(np.mean((said - was) ** 2)))
    assert abs(found.within) < 0.02


def test_bins_hold_equally_many_items_and_the_error_is_their_mean_distance() -> None:
    bins = equal_mass_bins(CONFIDENCE, RIGHT, count=2)
    assert [one.count for one in bins] == [5, 5]
    assert [(one.confidence, one.accuracy) for one in bins] == [pytest.approx((0.6, 0.8)), pytest.approx((0.9, 0.6))]
    assert calibration_error(bins) == pytest.approx(0.25)
    assert {one.count for one in equal_mass_bins([0.1 * i for i in range(7)], [1.0] * 7, count=3)} == {2, 3}


@pytest.mark.parametrize(("items", "by_chance"), [(100, 0.104), (500, 0.047), (2000, 0.023)])
def test_a_perfectly_calibrated_model_shows_a_calibration_error_by_chance(items: int, by_chance: float) -> None:
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(60):
        said = rng.beta(2, 2, items)
        errors.append(calibration_error(equal_mass_bins(said.tolist(), (rng.random(items) < said).astype(float).tolist())))
    assert np.mean(errors) == pytest.approx(by_chance, rel=0.2)


def test_less_what_chance_gives_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    rng = np.random.default_rng(2)
    said = rng.beta(2, 2, 500)
    was = (rng.random(500) < said).astype(float).tolist()
    assert abs(excess_calibration_error(said.tolist(), was)) < 0.02
    assert excess_calibration_error(np.clip(said + 0.2, 0, 1).tolist(), was) > 0.1


def test_the_picture_of_two_sides_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = draw({"backbone": (CONFIDENCE, RIGHT), "adapted": ([1.0] * 10, RIGHT)}, tmp_path / "reliability.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [file]
