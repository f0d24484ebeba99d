"""A worse trial is ended after few items, and none is published on a part of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import small
from test_stop_probe import Parent, unheard

from registry.tracking import Tracking
from tuning.candidates import DIRECTORY_KEY, IN_FULL, SCORE_KEY, Candidate, candidate_to_publish, candidates_of, stored_candidates
from tuning.errors import NothingToPublish
from tuning.recipe import Recipe
from tuning.records import Records
from tuning.stop_items import shuffled
from tuning.stop_winner import Settling
from tuning.study import Sweep
from tuning.trial import ADAPTER, Job, Outcome, run
from tuning.waiting import Waiting


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


@dataclass(frozen=True)
class Found(Settling):
    """Reading a trial in full finds what is given here."""

    scores: Mapping[int, dict[str, object] | None] = field(default_factory=dict)

    def read(self, recipe: Recipe, candidate: Candidate, directory: Path) -> Outcome:
        found = self.scores[candidate.trial]
        return Outcome(state="complete", score=found) if found else Outcome(state="died", reason="no such file")


def settling(home: Path, study: optuna.Study, scores: Mapping[int, dict[str, object] | None]) -> Settling:
    recipe, directory = Recipe(name="small", domain="icd10"), home / "studies" / "small"
    records = Records(Tracking.at(home), recipe, study, None, str, Waiting(directory), share_files=False)
    return Found(recipe, study, records, directory, home / "cache", 1, str, bool, scores)


def study_of(home: Path, scores: list[tuple[float, int | None]]) -> optuna.Study:
    """Trials that gained so much, on so many items; None: on all."""
    (home / "studies" / "small").mkdir(parents=True)
    storage = f"sqlite:///{home / 'studies' / 'small' / 'optuna.db'}"
    study = optuna.create_study(study_name="small", storage=storage, direction="maximize")
    for number, (gain, num_items) in enumerate(scores):
        attributes = {SCORE_KEY: score(gain, num_items), DIRECTORY_KEY: str(home / str(number))}
        study.add_trial(optuna.create_trial(value=gain, user_attrs=attributes))
    return study


def score(gain: float, num_items: int | None = None) -> dict[str, object]:
    chosen = {"domain_gain": gain, "gain_stderr": 0.0}
    return {"chosen": chosen, "retention": 0.0, "constraints": {"kin": -1.0}, "feasible": True, "num_items": num_items}


def test_a_trial_of_some_items_is_no_candidate(tmp_path: Path) -> None:
    study = study_of(tmp_path, [(0.5, 24), (0.1, None)])
    assert [candidate.trial for candidate in candidates_of(study)] == [1]
    with pytest.raises(NothingToPublish, match="Trial 0.*did not finish"):
        candidate_to_publish(tmp_path, "small", 0)


def test_the_best_is_read_in_full_until_the_best_is_one_that_was(tmp_path: Path) -> None:
    study = study_of(tmp_path, [(0.5, 24), (0.4, 24), (0.3, None), (0.2, 24)])
    rest = settling(tmp_path, study, {0: score(0.05), 1: score(0.35)})
    assert rest.run() == [0, 1]
    found = stored_candidates(tmp_path, "small")
    assert [(candidate.trial, candidate.domain_gain) for candidate in found] == [(1, 0.35), (2, 0.3), (0, 0.05)]
    assert found[0].directory == tmp_path / "studies" / "small" / "trials" / "1" / IN_FULL / ADAPTER
    assert found[1].directory == tmp_path / "2" / ADAPTER
    assert rest.run() == []


def test_a_trial_that_cannot_be_read_in_full_is_passed_over(tmp_path: Path) -> None:
    study = study_of(tmp_path, [(0.5, 24), (0.3, None)])
    assert settling(tmp_path, study, {0: None}).run() == [0]
    assert [candidate.trial for candidate in candidates_of(study)] == [1]


@pytest.mark.slow
def test_a_sweep_under_wilcoxon_publishes_what_was_read_in_full(backbone_directory: Path, home: Path) -> None:
    sweep = Sweep(by_item(backbone_directory, 40).with_values({"study.trials": 3}), home, Tracking.at(home), threads=1)
    study = sweep.create()
    sweep.run(study, lambda event: None)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 3
    assert sweep.candidates(study)[0].score["num_items"] is None
