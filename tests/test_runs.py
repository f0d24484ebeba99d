"""Runs looked up: parents, children, documents, links and what was published from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gated_names import NAME

from registry.names import ReleaseName
from registry.runs import RunFound, children_of, document_of, parent_of, published_from, run_found, run_link, ui_command
from registry.tracking import Tracking


def test_a_trial_finds_its_study_and_the_study_its_trials(tracking: Tracking) -> None:
    parent = tracking.start_run("small", "study small")
    trials = {tracking.start_run("small", f"trial {n}", parent=parent, tags={"optuna.trial": str(n)}) for n in (0, 1)}
    stranger = tracking.start_run("small", "another")
    found = run_found(tracking, parent)
    assert found is not None and {child.id for child in children_of(tracking, found)} == trials
    child = run_found(tracking, min(trials))
    assert child is not None and parent_of(tracking, child) == found
    alone = run_found(tracking, stranger)
    assert alone is not None and parent_of(tracking, alone) is None
    assert run_found(tracking, "0" * 32) is None


def test_a_document_is_an_object_or_none(tracking: Tracking) -> None:
    run_id = tracking.start_run("small", "study")
    tracking.log_text(run_id, '{"trials": []}', "trials.json")
    tracking.log_text(run_id, "{cut", "cut.json")
    assert document_of(tracking, run_id, "trials.json") == {"trials": []}
    assert document_of(tracking, run_id, "cut.json") is None and document_of(tracking, run_id, "gone.json") is None


def test_the_newest_version_of_a_run_is_what_was_published_from_it(tracking: Tracking, tmp_path: Path) -> None:
    run_id = tracking.start_run("small", "trial 0")
    with tracking.client() as client:
        for _ in range(2):
            client.create_model_version(NAME, source=str(tmp_path), run_id=run_id)
    assert published_from(tracking, [run_id, "0" * 32]) == {run_id: ReleaseName(NAME, 6)}


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("https://me:secret@mlflow.example/tracking/", "https://mlflow.example/tracking/#/experiments/7/runs/abc"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/7/runs/abc"),
        ("sqlite:////home/mlflow.db", None),
        ("postgresql://me:secret@db/mlflow", None),
    ],
)
def test_a_run_has_a_link_where_a_server_shows_it(uri: str, link: str | None, tmp_path: Path) -> None:
    tracking = Tracking(uri, None, tmp_path)
    assert run_link(tracking, RunFound("abc", "7", {})) == link
    command = ui_command(tracking)
    assert (command is None) == (link is not None)
    assert command is None or ("mlflow ui --backend-store-uri" in command and "secret" not in command)


def test_a_store_with_odd_letters_is_one_argument_of_the_command(tmp_path: Path) -> None:
    assert ui_command(Tracking("sqlite:////my home/a;b.db", None, tmp_path)) == (
        "mlflow ui --backend-store-uri 'sqlite:////my home/a;b.db'"
    )
