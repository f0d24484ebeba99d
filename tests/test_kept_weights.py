"""Only the best adapters of a study stay on disk, and none that could still be chosen, or that is being read, goes."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import optuna
import pytest
from small_studies import small
from told_studies import complete, empty_in, with_weights

from tuning.being_read import being_read
from tuning.candidates import REFITTED, Candidate, candidate_to_publish, candidates_of, in_order, removed_key
from tuning.errors import NothingToPublish
from tuning.kept_weights import needed, remove_unneeded
from tuning.recipe import Recipe


def keeping(count: int) -> Recipe:
    return small(Path("backbone")).with_values({"study.keep_adapters": count, "gate.candidates": 1})


def candidate(trial: int, gain: float, retention: float, *, feasible: bool = True, stderr: float = 0.0) -> Candidate:
    chosen = {"domain_gain": gain, "gain_stderr": stderr}
    return Candidate(trial, Path("x"), {}, {"chosen": chosen, "retention": retention, "feasible": feasible}, None)


def swept(home: Path, scores: list[tuple[float, float]]) -> optuna.Study:
    """A study in a file with trials of such (gain, retention), and all their weights."""
    place = home / "studies" / "small"
    study = empty_in(place / "optuna.db")
    for number, (gain, retention) in enumerate(scores):
        study.add_trial(complete(gain, retention, directory=with_weights(place / "trials" / str(number))))
    return study


def there(home: Path) -> list[int]:
    return sorted(int(file.parent.name) for file in (home / "studies" / "small" / "trials").glob("*/adapter"))


def test_at_the_end_the_best_alone_stay_and_the_rest_of_a_trial_too(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1, -0.5), (0.3, -0.1), (0.2, -0.3), (0.3, -0.05)])
    assert sorted(remove_unneeded(study, keeping(2), over=True)) == [0, 2]
    assert there(tmp_path) == [1, 3]
    assert (tmp_path / "studies" / "small" / "trials" / "0" / "result.json").is_file()
    assert not list((tmp_path / "studies" / "small" / "trials" / "0").glob(".adapter*"))
    assert [one.trial for one in candidates_of(study) if one.removed] == [2, 0]


def test_the_gate_finds_all_that_it_takes(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1 * n, -0.1) for n in range(5)])
    remove_unneeded(study, keeping(1).with_values({"gate.candidates": 3}), over=True)
    assert len(there(tmp_path)) == 3


def test_the_recipes_own_values_stay() -> None:
    plain = candidate(0, 0.0, -0.9)
    plain.score["as_fitted"] = {"scale": 1.0}
    assert needed([plain, candidate(1, 0.3, -0.1), candidate(2, 0.2, -0.2)], 1, over=True) == {0, 1}


def test_what_a_later_trial_could_make_the_best_stays_until_the_end() -> None:
    # The first is near the largest gain and loses less; a larger gain would leave it behind, and bring the other to the front.
    gentle, strong = candidate(0, 0.10, -0.1, stderr=0.05), candidate(1, 0.12, -0.5, stderr=0.05)
    beaten = candidate(2, 0.05, -0.6)
    assert needed([gentle, strong, beaten], 1) == {0, 1}
    assert needed([gentle, strong, beaten], 1, over=True) == {0}
    assert in_order([gentle, strong, beaten, candidate(3, 0.16, -0.9)])[0].trial == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_first_is_never_among_the_removed(seed: int) -> None:
    draw, seen, gone = random.Random(seed), list[Candidate](), set[int]()
    for number in range(25):
        gain, retention, stderr = draw.uniform(-0.1, 0.4), -draw.random(), draw.uniform(0.0, 0.1)
        seen.append(candidate(number, gain, retention, stderr=stderr, feasible=draw.random() < 0.7))
        assert in_order(seen)[0].trial not in gone
        gone |= {one.trial for one in seen} - needed(seen, 1)
    assert gone


def test_weights_that_are_being_read_are_left_to_the_next_call(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1, -0.5), (0.3, -0.1)])
    with being_read(tmp_path / "studies" / "small" / "trials" / "0" / "adapter"):
        assert remove_unneeded(study, keeping(1), over=True) == []
        assert there(tmp_path) == [0, 1]
    assert remove_unneeded(study, keeping(1), over=True) == [0]


def test_workers_that_remove_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.01 * n, -0.1) for n in range(12)])
    found: list[list[int]] = []
    workers = [threading.Thread(target=lambda: found.append(remove_unneeded(study, keeping(1), over=True))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(number for numbers in found for number in numbers) == list(range(11))
    assert there(tmp_path) == [11]


def test_what_a_killed_worker_left_half_removed_goes_with_the_next(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1, -0.5), (0.3, -0.1)])
    left_behind = tmp_path / "studies" / "small" / "trials" / "0" / ".adapter.77.part"
    left_behind.mkdir()
    remove_unneeded(study, keeping(1), over=True)
    assert not left_behind.exists()


def test_publishing_removed_weights_says_how_to_have_them_again(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1, -0.5), (0.3, -0.1)])
    remove_unneeded(study, keeping(1), over=True)
    with pytest.raises(NothingToPublish, match="were removed.*graftline sweep refit small --trial 0"):
        candidate_to_publish(tmp_path, "small", 0)
    assert candidate_to_publish(tmp_path, "small").trial == 1
    with pytest.raises(NothingToPublish, match="is not there, or no longer"), being_read(candidates_of(study)[1].directory):
        pass


def test_what_was_fitted_again_stays(tmp_path: Path) -> None:
    study = swept(tmp_path, [(0.1, -0.5), (0.3, -0.1)])
    remove_unneeded(study, keeping(1), over=True)
    with_weights(tmp_path / "again")
    (tmp_path / "again" / "adapter").rename(tmp_path / "studies" / "small" / "trials" / "0" / "adapter")
    study.set_user_attr(removed_key(0), REFITTED)
    assert remove_unneeded(study, keeping(1), over=True) == []
    assert candidate_to_publish(tmp_path, "small", 0).trial == 0
