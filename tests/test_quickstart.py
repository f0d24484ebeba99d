"""`graftline quickstart` from the recipe to the served answer, on the tiny backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_study import admit

from adapters.backbone import Backbone
from service.commands.quickstart import NOTHING_PASSED, quickstart

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
