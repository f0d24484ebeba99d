"""`graftline knockout` and `graftline elicited`: what they print of a release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fitted import fitted_softcot
from small_releases import random_lora, write_release
from test_cli import ended

from adapters.adapter import Adapter
from adapters.backbone import Backbone

ASKED = ("--home", "home", "--items", "8")


def release(folder: Path, backbone: Backbone, adapter: Adapter) -> None:
    write_release(folder / "one", backbone, adapter, domain="icd10-chapter", protected=["grammar"])


def test_a_knock_out_is_one_object_for_scripts_and_a_matrix_for_people(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path, backbone, random_lora(backbone, 1))
    asked = ("knockout", "one", *ASKED, "--groups", "10", "--picture", "cka.png")
    assert ended((*asked, "--json"), tmp_path, monkeypatch) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    readings = told["readings"]
    assert f"{readings} readings of" in printed.err and "8 items each: about 0:" in printed.err
    assert f"readings: 0 of {readings}\n" in printed.err and f"readings: {readings} of {readings}\n" in printed.err
    assert [point["layers"] for point in told["off"]] == ["0", "1"]  # ten groups of two layers are two
    assert {row["task"] for row in told["whole"]} | set(told["not_measurable"]) == {"icd10-chapter", "grammar"}
    assert [(point["layers"], point["alpha"]) for point in told["sweep"]][:2] == [("all", 0.0), ("all", 0.5)]
    assert all(row["change"] == 0 for row in told["sweep"][0]["against_backbone"])
    assert (tmp_path / "cka.png").is_file()
    assert ended((*asked[:-2], "--full"), tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "layers off" in said and "on the front" in said and "0.25" in said


def test_a_release_that_acts_in_no_layer_says_why_it_is_not_measurable(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path, backbone, fitted_softcot(backbone, 1))
    assert ended(("knockout", "one", *ASKED), tmp_path, monkeypatch) == 0
    assert "not measurable: the profile acts in no layer" in capsys.readouterr().out
    assert ended(("knockout", "one", *ASKED, "--json"), tmp_path, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert "acts in no layer" in told["not_measurable"]["icd10-chapter"] and told["whole"] == []


def test_whether_a_gain_was_elicited_is_told_with_its_controls_or_why_not(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path, backbone, random_lora(backbone, 1))
    assert ended(("elicited", "one", *ASKED, "--json"), tmp_path, monkeypatch) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "readings and vectors: 0 of " in printed.err
    assert told["task"] == "icd10-chapter" and {"share", "opposite", "random", "verdict"} <= set(told)
    assert told["texts"] == "gold answers"
    assert ended(("elicited", "one", *ASKED, "--chain"), tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "nats per token" in said and ("verdict:" in said or "not measurable:" in said)
