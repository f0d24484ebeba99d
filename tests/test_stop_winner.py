"""The best trial is read in full before it is brought before the gate, with what memory there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
import pytest
from bounded_children import fits_below, killed, no_room
from scored_studies import score, study_of
from small_releases import write_directory

from registry.tracking import Tracking
from tuning.candidates import IN_FULL, Candidate, candidate_to_publish, candidates_of, stored_candidates
from tuning.errors import NothingToPublish
from tuning.recipe import Recipe
from tuning.records import Records
from tuning.stop_winner import Settling
from tuning.trial import ADAPTER, Job, Outcome, Report
from tuning.waiting import Waiting


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
    return Found(recipe, study, records, directory, home / "cache", 1, str, bool, scores=scores)


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


def partly_read(home: Path, fitted_with: int) -> optuna.Study:
    """One trial that was read on some items, whose adapter was fitted with so many tokens at once."""
    study = study_of(home, [(0.5, 24)])
    recipe = Recipe(name="small", domain="icd10").with_values({"method.micro_batch_tokens": fitted_with})
    write_directory(home / "0" / ADAPTER, recipe=recipe.model_dump(mode="json"))
    return study


@pytest.mark.parametrize("first", [killed, no_room])
def test_reading_that_had_no_room_is_tried_once_more_as_the_adapter_was_fitted(
    tmp_path: Path, first: Callable[[], Outcome]
) -> None:
    rest, seen = settling(tmp_path, partly_read(tmp_path, 512), {}), list[int]()

    def isolated(job: Job, report: Report, *asked: object) -> Outcome:
        seen.append(job.recipe.method.micro_batch_tokens)
        return first() if len(seen) == 1 else Outcome(state="complete", score=score(0.2))

    assert Settling(**{**vars_of(rest), "isolated": isolated}).run() == [0]
    assert seen == [512, 512], "what is only read has no smaller fit, and keeps what its manifest says"
    assert [candidate.domain_gain for candidate in candidates_of(rest.study)] == [0.2]


def test_reading_that_never_has_room_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    rest, seen, notes = settling(tmp_path, partly_read(tmp_path, 512), {}), list[int](), list[str]()
    isolated = fits_below(1, seen, no_room)
    assert Settling(**{**vars_of(rest), "isolated": isolated, "note": notes.append}).run() == [0]
    assert len(seen) == 2 and candidates_of(rest.study) == []
    assert "no room. Read twice. Run fewer workers" in notes[-1]


def vars_of(settling: Settling) -> dict[str, Any]:
    return {one.name: getattr(settling, one.name) for one in fields(Settling)}
