"""A worse trial is ended after few items, and none is published on a part of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from small_studies import small
from test_stop_probe import Parent, unheard

from registry.tracking import Tracking
from tuning.candidates import IN_FULL
from tuning.recipe import Recipe
from tuning.stop_items import shuffled
from tuning.study import Sweep
from tuning.trial import ADAPTER, Job, run


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance to the backbone is read of each trial, and plays no part here."""
    monkeypatch.setattr("tuning.trial.KL_PROMPTS", 1)


def by_item(backbone_directory: Path, num_items: int) -> Recipe:
    changes = {"study.mode": "constrained", "study.stop.rules": (), "study.stop.pruner": "wilcoxon"}
    changes |= {"study.stop.domain_items": 8, "study.stop.family_items": 4, "evaluation.domain_items": num_items}
    changes["evaluation.generated_items"] = 0
    return small(backbone_directory, **{"adapter.kind": "lora", **changes})


def test_items_come_in_one_order_for_all_trials_and_not_in_their_own() -> None:
    assert shuffled(150) == shuffled(150) != sorted(shuffled(150)) == list(range(150))


def test_a_trial_that_is_ended_has_the_mean_of_what_was_read_and_can_be_read_in_full(
    backbone_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.stop_items.SLICE", 4)
    recipe, parent = by_item(backbone_directory, 10), Parent({"items": "wilcoxon: worse."})
    outcome = run(Job(recipe, home / "trial", home / "cache", 1), unheard, parent)
    ((_, told),) = parent.asked
    assert outcome.state == "complete" and outcome.score["num_items"] == 4 == len(told["changes"])
    assert set(told["changes"]) == set(shuffled(10)[:4])
    assert outcome.score["chosen"]["domain_gain"] == pytest.approx(sum(told["changes"].values()) / 4)

    full = Job(recipe, home / "trial" / IN_FULL, home / "cache", 1, given=home / "trial" / ADAPTER, keep_given=True)
    found = run(full, unheard)
    whole = run(Job(recipe, home / "whole", home / "cache", 1), unheard)
    assert found.score == whole.score and found.score["num_items"] is None
    for file in (home / "whole" / ADAPTER).rglob("*.safetensors"):
        assert file.read_bytes() == (home / "trial" / IN_FULL / ADAPTER / file.relative_to(home / "whole" / ADAPTER)).read_bytes()


def test_a_trial_that_is_not_ended_is_read_on_every_item(
    backbone_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.stop_items.SLICE", 8)
    parent = Parent()
    outcome = run(Job(by_item(backbone_directory, 12), home / "trial", home / "cache", 1), unheard, parent)
    assert [len(told["changes"]) for _, told in parent.asked] == [8, 4]
    assert outcome.score["num_items"] is None and len(outcome.score["scales"]) == 2


@pytest.mark.slow
def test_a_sweep_under_wilcoxon_publishes_what_was_read_in_full(backbone_directory: Path, home: Path) -> None:
    sweep = Sweep(by_item(backbone_directory, 40).with_values({"study.trials": 3}), home, Tracking.at(home), threads=1)
    study = sweep.create()
    sweep.run(study, lambda event: None)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 3
    assert sweep.candidates(study)[0].score["num_items"] is None
