"""What was read of an adapter is found again by its files, newest first."""

from __future__ import annotations

from registry.measurements import FILES_TAG, KIND_TAG, MEASUREMENTS, record_measured, recorded_measured
from registry.tracking import Tracking

FILES, OTHERS = "a" * 64, "b" * 64


def test_what_is_recorded_is_found_by_the_files_and_newest_first(tracking: Tracking) -> None:
    assert recorded_measured(tracking, FILES, "evaluation") == []
    first = record_measured(tracking, FILES, "medicine@1", "evaluation", {"rows": [1]})
    second = record_measured(tracking, FILES, "medicine@2", "evaluation", {"rows": [2]})
    record_measured(tracking, OTHERS, "law@1", "evaluation", {"rows": [3]})
    record_measured(tracking, FILES, "medicine@1", "traces", {"tasks": []})
    found = recorded_measured(tracking, FILES, "evaluation")
    assert [(one.run_id, one.document["rows"]) for one in found] == [(second, [2]), (first, [1])]
    assert [one.document for one in recorded_measured(tracking, FILES, "traces")] == [{"tasks": []}]


def test_numbers_are_metrics_of_the_run_and_what_is_undefined_is_none(tracking: Tracking) -> None:
    numbers = {"change/gym:chain_sum": 0.25, "change/$odd$": -1.0, "low/x": None, "high/x": float("nan")}
    run_id = record_measured(tracking, FILES, "medicine@1", "evaluation", {}, numbers)
    with tracking.client() as client:
        assert client.get_run(run_id).data.metrics == {"change/gym:chain_sum": 0.25, "change/_odd_": -1.0}


def test_a_run_that_was_cut_off_or_lost_its_document_is_none(tracking: Tracking) -> None:
    tags = {FILES_TAG: FILES, KIND_TAG: "evaluation"}
    cut = tracking.start_run(MEASUREMENTS, "evaluation", tags=tags)
    tracking.log_text(cut, "{}", "evaluation.json")
    bare = tracking.start_run(MEASUREMENTS, "evaluation", tags=tags)
    tracking.end_run(bare)
    assert recorded_measured(tracking, FILES, "evaluation") == []
    tracking.end_run(cut)
    assert [one.run_id for one in recorded_measured(tracking, FILES, "evaluation")] == [cut]
