"""Reading a fit while it goes on: it changes nothing, is not done twice, and a fit that is stopped leaves no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from small_studies import small
from stores import store_at

from adapters.backbone import TESTBED
from adapters.files import load_adapters
from tuning.candidates import stored_candidates
from tuning.isolation import run_isolated
from tuning.loop import CHECKPOINT
from tuning.recipe import Recipe
from tuning.stop_curve import FitReading, curve_of
from tuning.study import Event, Sweep
from tuning.trial import ADAPTER, Job, run


@dataclass
class Parent:
    """Answers a child, and remembers what it was asked."""

    answers: Mapping[str, str] = field(default_factory=dict)  # by what is asked
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)  # but whether a reading is worth its time
    due: list[float] = field(default_factory=list)

    def __call__(self, kind: str, told: Mapping[str, Any]) -> str | None:
        if kind == "due":
            self.due.append(told["checkpoint"])
        else:
            self.asked.append((kind, told))
        return self.answers.get(kind)

    @property
    def checkpoints(self) -> list[float]:
        return [FitReading.of(told).checkpoint for kind, told in self.asked if kind == "probe"]


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance to the backbone is read of each trial, and plays no part here."""
    monkeypatch.setattr("tuning.trial.KL_PROMPTS", 1)


def unheard(phase: str, share: float) -> None:
    pass


def read_at(backbone_directory: Path, *checkpoints: float, **changes: object) -> Recipe:
    given = {"study.stop.checkpoints": checkpoints, "study.stop.domain_items": 8, "study.stop.family_items": 4}
    given["evaluation.generated_items"] = 0
    return small(backbone_directory, **{"method.steps": 3, "adapter.kind": "lora", **given, **changes})


def weights(directory: Path) -> list[torch.Tensor]:
    return [tensor for adapter in load_adapters(directory) for tensor in adapter.tensors().values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["lora", "lora+softcot"])
def test_a_fit_that_is_read_is_bit_for_bit_the_same(backbone_directory: Path, home: Path, kind: str) -> None:
    changes = {"adapter.kind": kind, "adapter.lora.dropout": 0.2 if kind == "lora" else 0.0}
    recipe, parent = read_at(backbone_directory, 0.33, 0.67, **changes), Parent()
    read = run(Job(recipe, home / "read", home / "cache", 1), unheard, parent)
    unread = run(Job(recipe, home / "unread", home / "cache", 1), unheard)
    assert parent.checkpoints == [0.33, 0.67] and read.score == unread.score
    pairs = zip(weights(home / "read" / ADAPTER), weights(home / "unread" / ADAPTER), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert read.seconds["probe"] > 0 == unread.seconds["probe"]


def test_a_reading_is_of_the_weights_as_they_are_then(backbone_directory: Path, home: Path) -> None:
    recipe, parent = read_at(backbone_directory, 0.33, 1.0, **{"method.learning_rate": 0.2, "method.steps": 6}), Parent()
    run(Job(recipe, home / "trial", home / "cache", 1), unheard, parent)
    early, late = (FitReading.of(told) for _, told in parent.asked)
    assert [point.scale for point in late.points] == [0.5, 1.0] and set(late.points[0].families) == {"arithmetic", "ordering"}
    assert early.points[-1].families != late.points[-1].families != late.points[0].families
    assert not late.points[-1].is_tolerable


def test_a_smaller_scale_is_read_only_where_the_largest_loses_too_much(backbone_directory: Path, home: Path) -> None:
    recipe, parent = read_at(backbone_directory, 1.0, **{"method.learning_rate": 1e-9}), Parent()
    run(Job(recipe, home / "trial", home / "cache", 1), unheard, parent)
    (reading,) = (FitReading.of(told) for _, told in parent.asked)
    assert [point.scale for point in reading.points] == [1.0] and reading.least is None and reading.chosen.is_tolerable


def test_a_fit_that_is_stopped_says_why_and_leaves_no_weights(
    backbone_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    recipe, parent = read_at(backbone_directory, 0.67, **{"method.steps": 4}), Parent({"probe": "floor: too much is lost."})
    outcome = run(Job(recipe, home / "trial", home / "cache", 1), unheard, parent)
    assert (outcome.state, outcome.reason) == ("stopped", "floor: too much is lost.")
    assert [file.name for file in sorted((home / "trial").rglob("*"))] == ["readings.jsonl", "result.json"]


def test_a_fit_that_goes_on_after_a_kill_is_not_read_again_and_tells_its_parent_once_more(
    backbone_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(phase: str, share: float) -> None:
        if phase == "fit" and share > 0.7:
            raise Killed

    monkeypatch.setattr("tuning.loop.CHECKPOINT_S", 0.0)
    recipe, first, second = read_at(backbone_directory, 0.33, 1.0, **{"method.steps": 4}), Parent(), Parent()
    job = Job(recipe, home / "trial", home / "cache", 1)
    with pytest.raises(Killed):
        run(job, kill, first)
    assert (home / "trial" / CHECKPOINT).is_file() and first.checkpoints == [0.33]
    assert run(job, unheard, second).state == "complete"
    assert second.checkpoints == [0.33, 1.0] and second.asked[0] == first.asked[0]
    assert len((home / "trial" / "readings.jsonl").read_text().splitlines()) == 2


def test_the_readings_of_another_fit_in_the_same_place_are_not_taken_for_its_own(backbone_directory: Path, home: Path) -> None:
    parent = Parent({"probe": "stopped."})
    recipe = read_at(backbone_directory, 0.33)
    run(Job(recipe, home / "trial", home / "cache", 1), unheard, parent)
    run(Job(recipe.with_values({"method.learning_rate": 1e-4}), home / "trial", home / "cache", 1), unheard, parent)
    assert parent.asked[0][1]["points"] != parent.asked[1][1]["points"]


def test_without_rules_checkpoints_or_a_judge_nothing_is_read(backbone_directory: Path, home: Path) -> None:
    parent = Parent()
    run(Job(read_at(backbone_directory, 0.33, **{"study.stop.rules": ()}), home / "1", home / "cache", 1), unheard, parent)
    run(Job(read_at(backbone_directory), home / "2", home / "cache", 1), unheard, parent)
    assert parent.asked == []


@pytest.mark.slow
def test_a_child_asks_its_parent_and_waits_for_the_answer(backbone_directory: Path, home: Path) -> None:
    parent = Parent({"probe": "floor: too much is lost."})
    job = Job(read_at(backbone_directory, 0.33, 0.67), home / "trial", home / "cache", 1)
    outcome = run_isolated(job, unheard, judge=parent)
    assert outcome.state == "stopped" and parent.checkpoints == [0.33]


@pytest.mark.slow
def test_a_parent_that_cannot_answer_ends_its_child(backbone_directory: Path, home: Path) -> None:
    def lost(kind: str, told: Mapping[str, Any]) -> None:
        raise OSError("the storage is away")

    with pytest.raises(OSError, match="the storage is away"):
        run_isolated(Job(read_at(backbone_directory, 0.33), home / "trial", home / "cache", 1), unheard, judge=lost)
    assert not (home / "trial" / ADAPTER).exists()


@pytest.mark.slow
def test_a_sweep_stops_the_trial_that_ruins_what_the_backbone_can_do_and_keeps_the_good_one(tmp_path: Path) -> None:
    # Of the model that reasons: a learning rate of 1e-3 at this alpha costs it alchemy, one of 2e-4 does not.
    recipe = Recipe(
        name="ruined",
        backbone=str(TESTBED),
        domain="arithmetic",
        protected=("alchemy",),
        search=("method.learning_rate",),
        start=({"method.learning_rate": 1e-3}, {"method.learning_rate": 1e-4}),
        adapter={"lora": {"rank": 8, "alpha": 512}},
        method={"steps": 20, "batch_size": 8, "learning_rate": 2e-4, "num_examples": 200},
        evaluation={"domain_items": 32, "chain_items": 16, "generated_items": 4},
        study={"trials": 3, "scales": (0.5, 1.0)},
    )
    sweep, events = Sweep(recipe, tmp_path, store_at(tmp_path), threads=1), list[Event]()
    study = sweep.create()
    sweep.run(study, events.append)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    ruined = study.trials[1]
    assert "retention floor" in ruined.user_attrs["failure"] and ruined.constraints["alchemy"] > 0
    assert len(curve_of(ruined.user_attrs)) == 1 and len(curve_of(study.trials[2].user_attrs)) == 2
    assert not list((sweep.directory / "trials" / "1").rglob("*.safetensors"))
    assert sweep.candidates(study)[0].feasible and {c.trial for c in stored_candidates(tmp_path, "ruined")} == {0, 2}
    assert [event.kind for event in events if event.trial == 1 and event.kind not in ("fit", "start")] == ["probe", "pruned"]


def test_a_reading_that_is_not_worth_its_time_is_not_taken(backbone_directory: Path, home: Path) -> None:
    parent = Parent({"due": "two of ninety readings ended a fit"})
    run(Job(read_at(backbone_directory, 0.33, 1.0), home / "trial", home / "cache", 1), unheard, parent)
    assert parent.due == [0.33, 1.0] and parent.asked == []
