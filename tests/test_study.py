"""Sweeps on the tiny backbone: from a recipe to candidates that can be published, resumed and read by plain Optuna and MLflow."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from functools import partial
from pathlib import Path

import mlflow
import optuna
import pytest
from mlflow.entities import Run
from optuna.trial import TrialState
from small_studies import admit, knowing_home, small
from stores import store_at
from toy_engine import Mind

from adapters.backbone import Backbone
from registry.tracking import Tracking
from tuning.candidates import DIRECTORY_KEY, candidate_to_publish, stored_candidates
from tuning.errors import BadRecipe, NothingToPublish, StudyMismatch, SweepRefused, SweepStopped
from tuning.isolation import ChildDied, run_isolated
from tuning.loop import CHECKPOINT
from tuning.objective import POOLED, ScaleScore, constraints, in_order, tolerance
from tuning.recipe import Recipe
from tuning.study import Event, Sweep
from tuning.trial import Job


@pytest.fixture(scope="module")
def swept(
    backbone_directory: Path, session_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sweep, list[Event]]:
    home = knowing_home(session_backbone, tmp_path_factory.mktemp("home"))
    sweep = Sweep(small(backbone_directory), home, store_at(home), threads=1)
    events: list[Event] = []
    sweep.run(sweep.create(), events.append)
    return sweep, events


def runs_of(sweep: Sweep) -> list[Run]:
    client = mlflow.MlflowClient(sweep.tracking.uri)
    experiment = client.get_experiment_by_name(sweep.recipe.name)
    return list(client.search_runs([experiment.experiment_id]))


def parent_of(sweep: Sweep) -> Run:
    (parent,) = [run for run in runs_of(sweep) if "mlflow.parentRunId" not in run.data.tags]
    return parent


def children_of(sweep: Sweep) -> list[Run]:
    parent = parent_of(sweep).info.run_id
    return [run for run in runs_of(sweep) if run.data.tags.get("mlflow.parentRunId") == parent]


def test_the_first_trial_is_the_recipe_as_written(swept: tuple[Sweep, list[Event]]) -> None:
    sweep, _ = swept
    study = optuna.load_study(study_name="small", storage=sweep.storage_url)
    assert study.trials[0].params == {"adapter.kind": "lora", "method.learning_rate": 5e-4}


def test_every_trial_reports_two_objectives_and_a_constraint_a_family(swept: tuple[Sweep, list[Event]]) -> None:
    study = optuna.load_study(study_name="small", storage=swept[0].storage_url)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) == 2
    for trial in complete:
        assert trial.values is not None and len(trial.values) == 2
        assert set(trial.constraints) == {"arithmetic", "ordering", POOLED}


def test_the_scales_are_all_kept_with_the_trial(swept: tuple[Sweep, list[Event]]) -> None:
    for candidate in stored_candidates(swept[0].home, "small"):
        assert [score["scale"] for score in candidate.score["scales"]] == [0.5, 1.0]


def test_a_candidate_can_be_published_as_it_lies(swept: tuple[Sweep, list[Event]]) -> None:
    from registry.release import publish

    sweep, _ = swept
    candidate = stored_candidates(sweep.home, "small")[0]
    release = publish(sweep.tracking, "small", candidate.directory, candidate.run_id)
    assert release.manifest.recipe["name"] == "small"
    assert release.manifest.task["name"] == "icd10-chapter"


def test_plain_mlflow_finds_a_parent_run_with_its_children_and_the_picture(swept: tuple[Sweep, list[Event]]) -> None:
    parent, children = parent_of(swept[0]), children_of(swept[0])
    assert len(children) == 2 and parent.info.status == "FINISHED"
    assert {"domain/gain", "retention/mean_capped", "kl/forward", "retention/chain/arithmetic"} <= set(children[0].data.metrics)
    client = mlflow.MlflowClient(swept[0].tracking.uri)
    assert {"pareto.png", "trials.json", "recipe.json"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_a_study_goes_on_where_it_stopped(swept: tuple[Sweep, list[Event]], backbone_directory: Path) -> None:
    sweep, _ = swept
    longer = Sweep(small(backbone_directory, **{"study.trials": 3}), sweep.home, sweep.tracking, threads=1)
    study = longer.create(resume=True)
    longer.run(study, lambda event: None)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 3


def test_a_study_that_was_killed_while_it_was_made_still_begins_with_the_recipe_as_written(
    backbone_directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(small(backbone_directory), home, Tracking.at(home), threads=1)
    with monkeypatch.context() as patched:
        patched.setattr("optuna.Study.set_user_attr", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep.create()
    first = sweep.create(resume=True).get_trials(states=(TrialState.WAITING,))
    assert [trial.system_attrs["fixed_params"] for trial in first] == sweep._points()
    with pytest.raises(StudyMismatch, match="another recipe"):
        Sweep(small(backbone_directory, **{"method.batch_size": 3}), home, sweep.tracking).create(resume=True)


def test_a_study_is_not_joined_by_accident_or_with_another_recipe(
    swept: tuple[Sweep, list[Event]], backbone_directory: Path
) -> None:
    sweep, _ = swept
    with pytest.raises(StudyMismatch, match="--resume"):
        sweep.create()
    other = Sweep(small(backbone_directory, **{"method.batch_size": 3}), sweep.home, sweep.tracking)
    with pytest.raises(StudyMismatch, match="another recipe"):
        other.create(resume=True)


def test_a_fit_that_diverges_is_pruned_with_its_reason(backbone_directory: Path, home: Path) -> None:
    # A scale beyond float32 makes infinity times zero in the first forward.
    recipe = small(backbone_directory, **{"adapter.lora.alpha": 10**40, "study.trials": 1})
    recipe = recipe.with_values({"search": ("adapter.kind",)})
    sweep = Sweep(recipe, home, Tracking.at(home), threads=1)
    study = sweep.create()
    events: list[Event] = []
    sweep.run(study, events.append)
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert "must stay finite" in trial.user_attrs["failure"]
    assert any(event.kind == "pruned" for event in events)
    assert not (home / "studies" / "small" / "trials" / "0" / "adapter").exists()


def test_what_the_backbone_cannot_do_constrains_no_trial_and_is_said_once(
    backbone_directory: Path, session_backbone: Backbone, tmp_path: Path
) -> None:
    admit(session_backbone, tmp_path, "arithmetic")
    admit(session_backbone, tmp_path, "ordering", Mind(solves=False))
    sweep = Sweep(small(backbone_directory), tmp_path, store_at(tmp_path), threads=1)
    study, events = sweep.create(), list[Event]()
    sweep.run(study, events.append)
    assert all(set(trial.constraints) == {"arithmetic", POOLED} for trial in study.trials)
    assert len([event for event in events if "ordering" in event.text and "not measurable" in event.text]) == 1
    stored = json.loads((sweep.directory / "trials.json").read_text())
    assert list(stored["not_measurable"]) == ["ordering"]
    assert parent_of(sweep).data.tags["protected.ordering"].startswith("not measurable: the backbone scores 0.00")


def test_a_sweep_without_a_measurable_family_is_refused_and_leaves_its_name_free(
    backbone_directory: Path, session_backbone: Backbone, tmp_path: Path
) -> None:
    for family in ("arithmetic", "ordering"):
        admit(session_backbone, tmp_path, family, Mind(solves=False))
    sweep = Sweep(small(backbone_directory), tmp_path, store_at(tmp_path), threads=1)
    with pytest.raises(SweepRefused, match="none of the protected families. arithmetic: the backbone scores"):
        sweep.run(sweep.create(), lambda event: None)
    assert not sweep.create().get_trials(states=(TrialState.FAIL,))
    assert parent_of(sweep).info.status == "FAILED"


def test_a_backbone_is_looked_at_by_the_first_trial_of_its_first_sweep(backbone_directory: Path, tmp_path: Path) -> None:
    sweep = Sweep(small(backbone_directory).with_values({"protected": ("arithmetic",)}), tmp_path, store_at(tmp_path), threads=1)
    with pytest.raises(SweepRefused, match="arithmetic: the backbone scores 0.00"):
        sweep.run(sweep.create(), lambda event: None)
    assert len(list((tmp_path / "cache" / "admission").iterdir())) == 1


def test_trial_after_trial_that_dies_stops_the_sweep_with_its_reason_in_every_run(backbone_directory: Path, home: Path) -> None:
    # The cache's place is taken by a file: an error that the trial does not know, as a full disk would be.
    (home / "cache" / "base").write_text("")
    sweep = Sweep(small(backbone_directory), home, Tracking.at(home), threads=1)
    study = sweep.create()
    with pytest.raises(SweepStopped, match="3 trials in a row died.*--resume"):
        sweep.run(study, lambda event: None)
    ended = study.get_trials(states=(TrialState.FAIL,))
    assert [trial.user_attrs.get("tries", 0) for trial in ended] == [0, 1, 0]
    first, retried, other = (trial.user_attrs[DIRECTORY_KEY] for trial in ended)
    assert first == retried != other  # where the checkpoint of its fit is
    parent, children = parent_of(sweep), children_of(sweep)
    assert parent.info.status == "FAILED" and "3 trials in a row" in parent.data.tags["failure"]
    assert len(children) == 3
    assert all(run.data.tags["outcome"] == "died" and "cache" in run.data.tags["failure"] for run in children)

    (home / "cache" / "base").unlink()
    again = sweep.create(resume=True)
    sweep.run(again, lambda event: None)
    assert study.trials[0].params in [trial.params for trial in again.get_trials(states=(TrialState.COMPLETE,))]
    assert parent_of(sweep).info.status == "FINISHED"


def test_trials_that_all_end_for_the_same_reason_stop_the_sweep_with_it(backbone_directory: Path, home: Path) -> None:
    values = {"method.name": "star", "method.num_questions": 2, "method.samples": 2, "study.trials": 9}
    sweep = Sweep(small(backbone_directory, **values), home, Tracking.at(home), threads=1)
    study = sweep.create()
    with pytest.raises(SweepStopped, match="No trial of 3 could be fitted.*none of the 2 that the backbone wrote.*--resume"):
        sweep.run(study, lambda event: None)
    assert [trial.state for trial in study.trials if trial.state != TrialState.WAITING] == [TrialState.PRUNED] * 3
    assert len({trial.params["method.learning_rate"] for trial in study.trials[:3]}) > 1
    assert parent_of(sweep).info.status == "FAILED"


def test_an_error_that_would_come_again_prunes_the_trial(backbone_directory: Path, home: Path) -> None:
    short = Sweep(small(backbone_directory, **{"study.trials": 1}), home, Tracking.at(home), threads=1)
    short.run(short.create(), lambda event: None)
    sweep = Sweep(small(backbone_directory), home, short.tracking, threads=1)
    study = sweep.create(resume=True)
    checkpoint = sweep.directory / "trials" / "1" / CHECKPOINT
    checkpoint.parent.mkdir()
    checkpoint.write_text("no checkpoint")
    sweep.run(study, lambda event: None)
    assert study.trials[1].state == TrialState.PRUNED
    assert re.search(r"^\w+Error: .*\(\w+\.py:\d+\)", study.trials[1].user_attrs["failure"], re.S)


def test_results_wait_while_the_store_is_away_and_are_logged_once(backbone_directory: Path, home: Path) -> None:
    sweep = Sweep(small(backbone_directory), home, Tracking.at(home), threads=1)
    study, store, events = sweep.create(), home / "mlflow.db", list[Event]()

    def lose_the_store(event: Event) -> None:
        if event.kind == "measure" and event.trial == 0 and not (home / "away").is_file():
            store.rename(home / "away")
            store.write_text("no database")
        if event.kind == "start" and event.trial == 1:
            (home / "away").replace(store)
        events.append(event)

    sweep.run(study, lose_the_store)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    notes = " ".join(event.text for event in events if event.kind == "note")
    assert "The result of trial 0 waits in" in notes and "1 results that waited are logged" in notes
    assert sorted(run.data.tags["optuna.trial"] for run in children_of(sweep)) == ["0", "1"]
    by_trial = {run.data.tags["optuna.trial"]: run.info.run_id for run in children_of(sweep)}
    assert {str(one.trial): one.run_id for one in sweep.candidates(study)} == by_trial
    assert parent_of(sweep).info.status == "FINISHED"


def test_results_that_still_wait_at_the_end_are_logged_by_the_next_command(backbone_directory: Path, home: Path) -> None:
    sweep = Sweep(small(backbone_directory, **{"study.trials": 1}), home, Tracking.at(home), threads=1)
    study, store, notes = sweep.create(), home / "mlflow.db", list[str]()

    def lose_the_store(event: Event) -> None:
        notes.append(event.text)
        if event.kind == "measure" and not (home / "away").is_file():
            store.rename(home / "away")
            store.write_text("no database")

    sweep.run(study, lose_the_store)
    assert any("1 results wait in" in note and "--resume" in note for note in notes)
    (home / "away").replace(store)
    sweep.run(sweep.create(resume=True), lambda event: None)
    (child,) = children_of(sweep)
    assert child.data.tags["optuna.trial"] == "0" and child.info.status == "FINISHED"
    assert parent_of(sweep).info.status == "FINISHED"
    assert not list((sweep.directory / "untracked").glob("*.json"))


def test_a_child_that_gives_no_sign_of_life_is_stopped(backbone_directory: Path, tmp_path: Path) -> None:
    job = Job(small(backbone_directory), tmp_path / "trial", tmp_path, threads=1)
    with pytest.raises(ChildDied, match="no sign of life for 0 s.*stall_timeout_s"):
        run_isolated(job, lambda phase, share: None, stall_timeout_s=0.01)


def test_a_child_that_is_killed_is_told_from_one_that_was_stopped(backbone_directory: Path, tmp_path: Path) -> None:
    job = Job(small(backbone_directory), tmp_path / "trial", tmp_path / "cache", threads=1)

    def kill(phase: str, share: float) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(ChildDied, match="exit code -9") as died:
        run_isolated(job, kill)
    assert died.value.killed
    with pytest.raises(ChildDied, match="no sign of life") as stopped:
        run_isolated(job, lambda phase, share: None, stall_timeout_s=0.01)
    assert not stopped.value.killed


def test_scales_are_written_from_in_order_of_gain_among_those_that_lose_nothing() -> None:
    kept, less = ScaleScore(0.5, 0.1, 0.5, {"a": -0.01}), ScaleScore(0.25, 0.05, 0.4, {"a": 0.0})
    lost, hollow = ScaleScore(1.0, 0.3, 0.7, {"a": -0.5}), ScaleScore(0.75, 0.2, 0.6, {"a": -0.2})
    assert in_order([less, kept, lost, hollow], {"a": 0.03}) == [kept, less]
    # Nothing is tolerable: the adapter is shown as it was fitted, not at the scale that hides its loss best.
    assert in_order([hollow, lost], {"a": 0.03}) == [lost]


def test_a_gain_that_is_noise_buys_no_loss() -> None:
    gentle, full = ScaleScore(0.5, 0.15, 0.5, {"a": -0.001}, 0.06), ScaleScore(1.0, 0.19, 0.55, {"a": -0.02}, 0.06)
    assert in_order([full, gentle], {"a": 0.03})[0] is gentle
    far = ScaleScore(1.0, 0.40, 0.55, {"a": -0.02}, 0.06)
    assert in_order([far, gentle], {"a": 0.03})[0] is far


def test_a_constraint_is_the_worse_of_likelihood_and_writing() -> None:
    chosen = ScaleScore(1.0, 0.1, 0.5, {"a": -0.03, "b": 0.0})
    found = constraints(chosen, {"a": 0.0, "b": -1.0}, {"a": 10, "b": 10}, {"a": 0.03, "b": 0.03})
    assert found["a"] == pytest.approx(0.0)
    assert found["b"] > 1 and found[POOLED] > 1


def test_a_flip_that_chance_explains_is_no_loss() -> None:
    assert tolerance(0.15, 10) > 0.3 and tolerance(0.15, 1000) < 0.17
    found = constraints(ScaleScore(1.0, 0.1, 0.5, {"a": 0.0}), {"a": -0.2}, {"a": 10}, {"a": 0.03})
    assert found["a"] < 0


def study_of(home: Path, constraints: list[float]) -> None:
    """A study whose trials have the given violation of one family."""
    (home / "studies" / "small").mkdir(parents=True)
    storage = f"sqlite:///{home / 'studies' / 'small' / 'optuna.db'}"
    study = optuna.create_study(study_name="small", storage=storage, directions=["maximize", "maximize"])
    for violation in constraints:
        chosen = {"domain_gain": 0.2, "gain_stderr": 0.1}
        score = {"chosen": chosen, "retention": -violation, "constraints": {"kin": violation}, "feasible": violation <= 0}
        attributes = {"score": score, "directory": str(home / "trial")}
        study.add_trial(optuna.create_trial(values=[0.2, -violation], user_attrs=attributes))


def test_a_best_trial_that_lost_too_much_is_published_by_its_number_only(tmp_path: Path) -> None:
    study_of(tmp_path, [2.0, 0.7])
    with pytest.raises(NothingToPublish, match="the best, 1, exceeds the margin of kin by 0.7 margins.*--trial 1: the gate"):
        candidate_to_publish(tmp_path, "small")
    assert candidate_to_publish(tmp_path, "small", 0).trial == 0
    with pytest.raises(NothingToPublish, match="Trial 7.*Finished: 0, 1"):
        candidate_to_publish(tmp_path, "small", 7)


def test_a_best_trial_that_kept_everything_is_published(tmp_path: Path) -> None:
    study_of(tmp_path, [2.0, -0.5])
    assert candidate_to_publish(tmp_path, "small").trial == 1


def test_a_trial_uses_the_cores_there_are_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = partial(Sweep, Recipe(name="x", domain="icd10"), tmp_path, Tracking.at(tmp_path))
    assert sweep().threads == len(os.sched_getaffinity(0))
    monkeypatch.setenv("GRAFTLINE_THREADS", "5")
    assert sweep().threads == 5
    monkeypatch.setenv("GRAFTLINE_THREADS", "0")
    with pytest.raises(BadRecipe, match="GRAFTLINE_THREADS"):
        sweep()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("method.learning_rate", 5.0, r"gives 'method.learning_rate' the value 5.0, which .* 0 < learning_rate < 1"),
        ("method.learning_rate", 0.5, r"the value 0.5, but the sweep searches \[5e-05, 0.001\]"),
        ("method.batch_size", 12, r"the value 12, but the sweep searches \[8, 16, 32\]"),
        ("method.target", "poem", r"gives 'method.target' the value 'poem', which"),
    ],
)
def test_a_start_that_cannot_be_tried_is_named_before_anything_is_written(
    tmp_path: Path, field: str, value: object, said: str
) -> None:
    recipe = Recipe(name="x", domain="icd10", search=(field,), start=({field: value},))
    with pytest.raises(BadRecipe, match=said) as refused:
        Sweep(recipe, tmp_path / "home", Tracking.at(tmp_path / "home"), threads=1).create()
    assert str(refused.value).startswith("start, point 1") and "{" not in str(refused.value)
    assert not (tmp_path / "home").exists()


def test_a_study_file_without_its_study_holds_no_candidate(tmp_path: Path) -> None:
    study_of(tmp_path, [])
    optuna.delete_study(study_name="small", storage=f"sqlite:///{tmp_path / 'studies' / 'small' / 'optuna.db'}")
    assert stored_candidates(tmp_path, "small") == []


def test_the_results_of_a_trial_are_plain_json(swept: tuple[Sweep, list[Event]]) -> None:
    stored = json.loads((swept[0].directory / "trials" / "0" / "result.json").read_text())
    assert stored["state"] == "complete" and stored["score"]["forward_kl"] is not None
