"""`graftline quickstart` from the recipe to the served answer, on the tiny backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_studies import admit

from adapters.backbone import Backbone
from registry.gate import run_gate
from registry.gate_report import GateReport
from registry.gate_settings import GateSettings
from registry.gate_statistics import PairedItems
from registry.ledger import Ledger
from registry.policy import Policy
from registry.release import Release
from registry.tracking import Tracking
from registry.verdicts import record_verdict
from service.commands.quickstart import NOTHING_PASSED, quickstart
from tuning.candidates import Candidate

RECIPE = """
name = "tiny"
backbone = "{backbone}"
domain = "icd10-chapter"
protected = ["arithmetic", "ordering"]
search = ["method.learning_rate"]
[adapter.lora]
rank = 4
[method]
steps = 2
batch_size = 2
num_examples = 20
learning_rate = 1e-4
[study]
trials = 2
time_budget_s = 600
scales = [1.0]
[evaluation]
domain_items = 8
chain_items = 4
generated_items = 1
[gate]
time_budget_s = 10
round_items = 8
domain_items = 8
max_rounds = 1
"""


@pytest.mark.slow
def test_when_nothing_passes_the_backbone_is_served_and_a_second_run_goes_on(
    backbone_directory: Path, session_backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, recipe = tmp_path / "home", tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(backbone=backbone_directory))
    for family in ("arithmetic", "ordering"):
        admit(session_backbone, home, family)
    assert quickstart(home, recipe, keep_serving=False) == NOTHING_PASSED
    said, first = capsys.readouterr().out, json.loads((home / "quickstart.json").read_text())
    assert "1 answers from http://127.0.0.1:" in said and "nothing passed the gate" in said
    table = (home / "studies" / "tiny" / "trials.json").read_text()
    assert [trial["state"] for trial in json.loads(table)["trials"]] == ["COMPLETE"] * 2

    assert quickstart(home, recipe, keep_serving=False) == NOTHING_PASSED
    again = json.loads((home / "quickstart.json").read_text())
    assert (home / "studies" / "tiny" / "trials.json").read_text() == table
    assert again["seconds"]["sweep"] < first["seconds"]["sweep"]


COUNT = 1000  # of items in the round of a gate that passes


def passing(
    tracking: Tracking,
    release: Release,
    engine: object,
    backbone: object,
    settings: GateSettings,
    policy: Policy,
    *others: object,
) -> GateReport:
    """The gate's statistics on items that every family kept and the domain gained."""

    def draw(number: int, settled: frozenset[str]) -> dict[str, PairedItems]:
        names = [f"{number}-{item}" for item in range(COUNT)]
        zeros, ones = np.zeros(COUNT), np.ones(COUNT)
        kept = {family: PairedItems.of(ones, ones, names) for family in policy.protected}
        return {policy.domain: PairedItems.of(zeros, ones, names), **kept}

    named = release.full_name
    report = run_gate(settings, draw, domain=policy.domain, subject=str(named), details={"policy": policy.digest()})
    record_verdict(tracking, named, report)
    return report


@pytest.mark.slow
def test_what_passes_is_promoted_compared_and_served_and_a_second_run_keeps_it(
    backbone_directory: Path,
    session_backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a random backbone gains and keeps is chance: the candidate and the items of the gate are given, all else is run.
    monkeypatch.setattr(Candidate, "feasible", property(lambda self: True))
    monkeypatch.setattr(Candidate, "domain_gain", property(lambda self: 0.1))
    monkeypatch.setattr("service.commands.quickstart.gate_release", passing)
    home, recipe = tmp_path / "home", tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(backbone=backbone_directory))
    for family in ("arithmetic", "ordering"):
        admit(session_backbone, home, family)
    assert quickstart(home, recipe, keep_serving=False) == 0
    said, figures = capsys.readouterr().out, json.loads((home / "quickstart.json").read_text())
    assert "2 answers from http://127.0.0.1:" in said and "Summary" in said
    assert figures["promoted"] == "tiny@1" and figures["comparison"]["items"] > 0
    assert Ledger(Tracking.at(home), "tiny").champion_version() == 1
    (compared,) = (home / "studies" / "tiny").glob("comparison-*.json")
    compared.write_text(compared.read_text().replace(f'"items": {figures["comparison"]["items"]}', '"items": 1'))

    assert quickstart(home, recipe, keep_serving=False) == 0
    again = json.loads((home / "quickstart.json").read_text())
    assert (again["promoted"], again["trials"]) == ("tiny@1", 2)
    assert again["comparison"] == figures["comparison"] | {"items": 1}  # what is on disk is read, and not measured again
    assert again["gate_gain"] == figures["gate_gain"] == 1.0
