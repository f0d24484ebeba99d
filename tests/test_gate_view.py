"""How far a gate is: a bar with the time that is left on a terminal, a line a round elsewhere."""

from __future__ import annotations

from io import StringIO

import pytest
from gated_names import report
from rich.console import Console
from test_gate import gate

from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from service.gate_view import gate_view, round_line, rounds_left, seconds_left


@pytest.fixture(scope="module")
def undecided() -> GateReport:
    """After one round of 20 items, of which it needs more; it took 10 of 300 seconds."""
    found = gate(GateSettings(margin=0.15, max_rounds=1, time_budget_s=300))
    assert found.verdict == "inconclusive"
    return found.model_copy(update={"elapsed_s": 10.0, "settings": found.settings.model_copy(update={"max_rounds": 20})})


def shown(found: GateReport, terminal: bool) -> str:
    out = StringIO()
    with gate_view(Console(file=out, force_terminal=terminal, width=120, _environ={"TERM": "xterm"}), found.subject, 300) as view:
        view.on_share(0.5)
        view.on_round(found)
        view.on_share(0.5)
    return out.getvalue()


def test_a_terminal_gets_a_bar_with_the_time_that_is_left(undecided: GateReport) -> None:
    text = shown(undecided, terminal=True)
    assert "gate of medicine@1" in text and "━" in text
    assert "about 0:" in text and " left" in text and round_line(undecided) in text


def test_elsewhere_there_is_a_line_a_round_and_nothing_else(undecided: GateReport) -> None:
    assert shown(undecided, terminal=False).strip() == round_line(undecided)


def test_what_is_left_is_what_the_slowest_test_still_needs(undecided: GateReport) -> None:
    needed = max(test.items_needed or 0 for test in undecided.tests)
    assert rounds_left(undecided) == -(-needed // 20) > 0
    assert seconds_left(undecided) == pytest.approx(10.0 * rounds_left(undecided))


def test_a_test_that_more_items_would_not_decide_takes_all_the_rounds(undecided: GateReport) -> None:
    lost = undecided.tests[1].model_copy(update={"items_needed": None})
    hopeless = undecided.model_copy(update={"tests": (undecided.tests[0], lost)})
    assert rounds_left(hopeless) == 19 and seconds_left(hopeless) == 190.0


def test_no_more_is_expected_than_the_budget_allows(undecided: GateReport) -> None:
    short = undecided.model_copy(update={"elapsed_s": 299.0})
    assert seconds_left(short) == 1.0
    few = undecided.model_copy(update={"settings": undecided.settings.model_copy(update={"max_rounds": 2})})
    assert rounds_left(few) == 1


def test_rounds_of_an_earlier_gate_took_no_time_of_this_one(undecided: GateReport) -> None:
    again = undecided.model_copy(update={"rounds": 4, "rounds_before": 2})
    assert seconds_left(again) == pytest.approx(rounds_left(again) * 5.0)


def test_a_decided_gate_has_nothing_left() -> None:
    assert rounds_left(report(1)) == 0 and seconds_left(report(1)) == 0.0
    assert "left" not in round_line(report(1))
