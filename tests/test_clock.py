"""Spans of time are shown with hours where there are any."""

from __future__ import annotations

import pytest

from service.clock import clock, lasting


@pytest.mark.parametrize(
    ("seconds", "shown", "told"),
    [
        (0.9, "0:00", "0:00 minutes"),
        (65, "1:05", "1:05 minutes"),
        (3599, "59:59", "59:59 minutes"),
        (49067, "13:37:47", "13:37:47 hours"),
    ],
)
def test_minutes_and_seconds_and_hours_where_there_are_any(seconds: float, shown: str, told: str) -> None:
    assert (clock(seconds), lasting(seconds)) == (shown, told)
