"""`graftline attribute` and `graftline trace-reliance` on the tiny backbone: one object, exit codes, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_studies import knowing_home
from test_cli import ended

from adapters.backbone import Backbone

RECIPE = """
name = "tiny"
backbone = "{backbone}"
domain = "icd10-chapter"
protected = ["arithmetic", "ordering"]

[adapter.lora]
rank = 4

[method]
steps = 2
batch_size = 2
num_examples = 20

[evaluation]
domain_items = 8
chain_items = 4
generated_items = 1
"""


@pytest.fixture
def folder(session_backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> Path:
    knowing_home(session_backbone, tmp_path / "home")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(backbone=backbone_directory))
    return tmp_path


ATTRIBUTE = ("attribute", "tiny.toml", "--home", "home", "--rows", "10", "--queries", "2", "--checkpoints", "2", "--no-check")
RELIANCE = ("trace-reliance", "tiny.toml", "--home", "home", "--seeds", "1")


def test_attribute_as_json_is_one_object(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended((*ATTRIBUTE, "--json"), folder, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] and told["evidence"] == "gradient alignment" and len(told["rows"]) == 10
    assert ended(ATTRIBUTE, folder, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "no removal experiment stands behind these scores" in printed and "the rows that cost most" in printed


def test_trace_reliance_as_json_is_one_object(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended((*RELIANCE, "--json"), folder, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] and set(told["arms"]) == set("NWFA") and set(told["effects"]) == {"reliance", "compute", "form"}
    assert ended(RELIANCE, folder, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "four arms, 1 seeds, with loss on the trace" in printed and "N - W" in printed


def test_a_study_whose_time_ran_out_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.pace import Budget

    monkeypatch.setattr(Budget, "is_spent", lambda self: True)
    for command in (ATTRIBUTE, RELIANCE):
        assert ended(command, folder, monkeypatch) == 1
        assert "time ran out; the same command goes on from" in capsys.readouterr().out
