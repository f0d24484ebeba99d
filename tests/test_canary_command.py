"""`graftline canary`: a gate that passed is not run again, and what a command did is what the ledger says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gated_names import NAME, report
from typer.testing import CliRunner

from registry.errors import CanaryRefused, NoCanary, PromotionRefused
from registry.ledger import Ledger
from registry.names import ReleaseName
from registry.tracking import Tracking
from registry.verdicts import record_verdict
from service.audit import read_audit
from service.cli import app


@pytest.fixture
def home(tracking: Tracking, tmp_path: Path) -> Path:
    """medicine@1 is champion, 2 has passed its gate, 3 has not."""
    Ledger(tracking, NAME).promote(1, report(1))
    record_verdict(tracking, ReleaseName(NAME, 2), report(2))
    record_verdict(tracking, ReleaseName(NAME, 3), report(3, lost=0.5))
    return tmp_path


def ran(home: Path, *words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["canary", *words, "--home", str(home), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_a_release_that_passed_starts_grows_and_is_promoted(home: Path, tracking: Tracking) -> None:
    started = ran(home, "start", f"{NAME}@2", "--max-error-rate-rise", "0.1", "--min-requests", "7")
    assert (started["release"], started["champion"], started["share"], started["shadow"]) == (
        f"{NAME}@2",
        f"{NAME}@1",
        0.1,
        False,
    )
    assert started["bounds"] == {"max_error_rate_rise": 0.1, "max_latency_ratio": 1.25, "min_requests": 7, "alpha": 0.01}
    grown = ran(home, "share", NAME, "0.5")
    assert ran(home, "status", NAME)["under_way"] == grown and grown["share"] == 0.5
    assert ran(home, "finish", NAME)["version"] == 2
    assert Ledger(tracking, NAME).champion_version() == 2
    shown = ran(home, "status", NAME)
    assert shown["under_way"] is None and [entry["kind"] for entry in shown["history"]] == ["start", "share", "finish"]  # type: ignore[attr-defined]


def test_a_release_that_failed_its_gate_needs_an_override_to_start_and_to_finish(home: Path, tracking: Tracking) -> None:
    with pytest.raises(PromotionRefused, match="boxes"):
        ran(home, "start", f"{NAME}@3")
    with pytest.raises(PromotionRefused, match="reason"):
        ran(home, "start", f"{NAME}@3", "--override")
    assert ran(home, "start", f"{NAME}@3", "--override", "--reason", "a demo")["overridden"] is True
    with pytest.raises(PromotionRefused, match="boxes"):
        ran(home, "finish", NAME)
    assert ran(home, "finish", NAME, "--override", "--reason", "a demo")["version"] == 3
    made = Ledger(tracking, NAME).override_in_force()
    assert made is not None and made.reason == "a demo"


def test_a_shadow_mirrors_everything_unless_it_is_told_otherwise(home: Path) -> None:
    assert ran(home, "start", f"{NAME}@2", "--shadow")["share"] == 1.0


def test_a_canary_is_stopped_with_a_reason_that_stays(home: Path) -> None:
    ran(home, "start", f"{NAME}@2")
    assert ran(home, "stop", NAME, "--reason", "[later]")["version"] == 2
    done = CliRunner().invoke(app, ["canary", "status", NAME, "--home", str(home)])
    assert "no canary of medicine is under way" in done.stdout and "[later]" in done.stdout
    with pytest.raises(NoCanary):
        ran(home, "finish", NAME)


def test_a_share_beyond_its_limits_is_refused_before_a_gate_is_run(home: Path) -> None:
    for words in (["--share", "1"], ["--share", "0"], ["--share", "1.1", "--shadow"], ["--share", "nan"]):
        with pytest.raises(CanaryRefused, match="share"):
            ran(home, "start", f"{NAME}@4", *words)


def test_every_act_of_a_command_is_a_line_of_the_audit_log(home: Path, tracking: Tracking) -> None:
    ran(home, "start", f"{NAME}@2")
    ran(home, "share", NAME, "0.5")
    with pytest.raises(CanaryRefused):
        ran(home, "share", NAME, "1.5")
    ran(home, "stop", NAME, "--reason", "later")
    ran(home, "start", f"{NAME}@2")
    ran(home, "finish", NAME)
    for words in (("rollback", NAME, "--reason", "worse"), ("promote", f"{NAME}@2", "--override")):
        CliRunner().invoke(app, [*words, "--home", str(home)])  # the second without a reason
    entries, damaged = read_audit(home)
    assert [(entry.act, entry.outcome) for entry in entries] == [
        ("canary.start", "done"),
        ("canary.share", "done"),
        ("canary.share", "failed"),
        ("canary.stop", "done"),
        ("canary.start", "done"),
        ("canary.finish", "done"),
        ("release.rollback", "done"),
        ("release.promote", "failed"),
    ]
    assert not damaged and all(entry.who.endswith("@command line") for entry in entries)
    assert entries[6].detail == {"to": 1, "reason": "worse"} and "reason" in (entries[7].reason or "")
