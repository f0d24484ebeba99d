"""The numbers of a sequence: as the continual matrix has them, with intervals over draws that stages and policies share."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tuning.sequence_matrix import NAMES, PolicyMatrix

DOMAINS = ("a", "b", "c")
COUNT = 40


def row(task: str, role: str, base: np.ndarray, adapted: np.ndarray, unit: str = "share right") -> dict[str, Any]:
    items = {"ids": [f"{task}/{n}" for n in range(COUNT)], "clusters": [f"{task}/{n // 2}" for n in range(COUNT)]}
    return {
        "measure": "choice_accuracy",
        "unit": unit,
        "task": task,
        "role": role,
        "base": float(base.mean()),
        "adapted": float(adapted.mean()),
        "change": float((adapted - base).mean()),
        "low": None,
        "high": None,
        "n": COUNT,
        "chance": None,
        "items": {**items, "base": base.tolist(), "adapted": adapted.tolist()},
        "summary": {},
    }


def answers(task: str, stage: int, right: float) -> np.ndarray:
    rng = np.random.default_rng(abs(hash((len(task), ord(task[0]), stage))) % 2**32)
    return (rng.random(COUNT) < right).astype(float)


def documents(forgets: float = 0.0, unit: str = "share right") -> list[dict[str, Any]]:
    """Three stages; each gains its own domain, and loses so much of the earlier ones."""
    found = []
    for stage, own in enumerate(DOMAINS, start=1):
        rows = []
        for domain in (own, *(other for other in DOMAINS if other != own)):
            at = DOMAINS.index(domain) + 1
            base, learnt = answers(domain, 0, 0.3), answers(domain, at, 0.9)
            after = base if stage < at else learnt if stage == at or not forgets else learnt * answers(domain, 9, 1 - forgets)
            rows.append(row(domain, "domain", base, after))
        kept = answers("family", 0, 0.8)
        rows.append(row("family", "protected", kept, kept * answers("family", 9, 1 - forgets) if forgets else kept, unit))
        found.append({"subject": f"after {own}", "backbone": "tiny", "rows": rows})
    return found


def test_the_numbers_are_those_of_the_continual_matrix() -> None:
    found = PolicyMatrix.of(documents(0.5))
    for name, value in asdict(found.matrix.transfer).items():
        if name in NAMES:
            assert found.numbers.interval(name).value == pytest.approx(value)
    assert found.numbers.interval("forgetting").value > 0.1  # type: ignore[operator]


def test_an_interval_holds_its_number_and_is_narrow_where_nothing_varies() -> None:
    lost, kept = PolicyMatrix.of(documents(0.5)), PolicyMatrix.of(documents())
    for name in NAMES:
        value, low, high = lost.numbers.interval(name)
        assert value is not None and low is not None and high is not None and low <= value <= high
    assert kept.numbers.interval("forgetting") == (0.0, 0.0, 0.0)
    assert kept.numbers.interval("reasoning") == (0.0, 0.0, 0.0)
    assert lost.numbers.interval("reasoning").high < 0  # type: ignore[operator]


def test_policies_are_compared_under_the_same_draws() -> None:
    lost, kept = PolicyMatrix.of(documents(0.5)), PolicyMatrix.of(documents())
    assert kept.numbers.minus(kept.numbers, "average_accuracy") == (0.0, 0.0, 0.0)
    gained = kept.numbers.minus(lost.numbers, "average_accuracy")
    alone = [one.numbers.interval("average_accuracy") for one in (kept, lost)]
    assert gained.low > 0 and gained.high - gained.low < sum(one.high - one.low for one in alone)  # type: ignore[operator]


def test_column_0_is_the_mean_over_the_families_that_are_counted_in_shares() -> None:
    assert PolicyMatrix.of(documents()).reasoning == pytest.approx([answers("family", 0, 0.8).mean()] * 4)
    in_nats = PolicyMatrix.of(documents(unit="nats per token"))
    assert set(in_nats.reasoning) == {None} and in_nats.numbers.interval("reasoning").value is None


def test_an_item_that_some_stage_cannot_show_is_in_no_draw() -> None:
    told = documents()
    for document in told:
        for one in document["rows"]:
            if one["task"] == "a":
                one["items"]["base"][0] = None
                one["items"]["adapted"][0] = None
    first = told[0]["rows"][0]["items"]["adapted"][1:]
    assert PolicyMatrix.of(told).numbers.values["learning_accuracy"].shape == (2001,)
    alone = PolicyMatrix.of([{**told[0], "rows": [told[0]["rows"][0], told[0]["rows"][3]]}])
    assert alone.numbers.interval("average_accuracy").value == pytest.approx(float(np.mean(first)))
    assert alone.numbers.interval("forgetting").value is None
