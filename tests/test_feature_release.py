"""A feature's adapter as a release: what its manifest says, what its gate holds it to, and that a reason can promote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import ended
from test_sae import random_sae

from adapters.backbone import Backbone
from engine.profile import Profile
from evaluation.cap_curve import AboveCap
from evaluation.tasks import task_named
from evaluation.tasks.alchemy import ALCHEMY
from registry.ledger import Ledger
from registry.manifest import TRAINING, verify
from registry.names import ReleaseName
from registry.tracking import Tracking
from registry.verdicts import recorded_report
from tuning.compression_gate import DomainTest
from tuning.errors import BadRecipe
from tuning.feature_release import COMPARED, write_feature
from tuning.gating import Subject
from tuning.guarded import guarded
from tuning.siblings import sibling

GATE = 'protected = ["grammar"]\nround_items = 8\ndomain_items = 8\nmax_rounds = 1\nearlier_domains = false\n'
FEATURE = 5
PROMOTE = ("--gate", "gate.toml", "--reason", "a small gate on a small backbone", "--override", "--home", "home")


def made(folder: Path, backbone: Backbone, strength: float, eps: float) -> Subject:
    """In `out`, with the autoencoder beside it."""
    sae = random_sae(backbone)
    sae.save(folder / "sae")
    compared = {"feature": FEATURE, "form": "column", "strength": strength, "layer": sae.record.layer, "systems": {}}
    recipe = guarded("alchemy-feature", backbone.name, "alchemy")
    steering, read = sae.steering(backbone, FEATURE, "column", strength), ALCHEMY.examples("train", 8)
    manifest = write_feature(folder / "out", recipe, backbone, steering, eps, folder / "sae", compared, read)
    return Subject("alchemy-feature@1", folder / "out", manifest)


def test_its_manifest_says_how_it_was_made_and_what_the_gate_reads(testbed: Backbone, tmp_path: Path) -> None:
    subject = made(tmp_path, testbed, 0.5, eps=0.25)
    manifest = verify(tmp_path / "out")
    assert manifest.profile.adapters == ("steering",) and {COMPARED, TRAINING} <= set(manifest.files)
    assert (manifest.derived["feature"], manifest.derived["how"]) == (FEATURE, "a feature of a sparse autoencoder")
    assert (subject.recipe.domain, subject.eps) == ("alchemy", 0.25) and "boxes" in subject.recipe.protected
    assert not {"adapter", "method", "search"} & set(manifest.recipe) and manifest.seeds == {}
    assert len(json.loads((tmp_path / "out" / TRAINING).read_text())["rows"]) == 8
    assert not list(tmp_path.glob(".*.part"))
    with pytest.raises(BadRecipe, match="made without a fit"):
        sibling(subject, testbed, 1, tmp_path, lambda share: None)


def test_its_gate_asks_for_more_than_the_cap_curve_gives(testbed: Backbone, tmp_path: Path) -> None:
    subject = made(tmp_path, testbed, 0.5, eps=0.25)
    asked = DomainTest.of(subject.recipe, task_named("alchemy"), Profile.load(subject.directory))
    assert isinstance(asked.measure, AboveCap) and asked.written is None


def test_it_is_published_gated_and_with_a_reason_promoted(
    testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, testbed, 0.001, eps=0.03)
    (tmp_path / "gate.toml").write_text(GATE)
    assert ended(("publish", "out", "--home", "home"), tmp_path, monkeypatch) == 0
    assert ended(("promote", "alchemy-feature@1", *PROMOTE), tmp_path, monkeypatch) == 0
    tracking = Tracking.at(tmp_path / "home").existing()
    report = recorded_report(tracking, ReleaseName("alchemy-feature", 1))
    assert report is not None and (report.domain.name, report.domain.num_items) == ("alchemy", 8)
    assert not report.passed  # it is on the curve and not above it: the reason in the ledger serves it
    assert Ledger(tracking, "alchemy-feature").head() is not None


def test_one_that_breaks_its_bound_is_refused_before_anything_is_drawn(
    testbed: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, testbed, 2.0, eps=0.001)
    (tmp_path / "gate.toml").write_text(GATE)
    assert ended(("publish", "out", "--home", "home"), tmp_path, monkeypatch) == 0
    assert ended(("promote", "alchemy-feature@1", *PROMOTE), tmp_path, monkeypatch) == 2
    assert "keeps the KL that it was made under, 0.001 nats a token" in capsys.readouterr().err
    tracking = Tracking.at(tmp_path / "home").existing()
    assert recorded_report(tracking, ReleaseName("alchemy-feature", 1)) is None
